"""`gptjobs compare`: jobs beside each other, and whether their losses differ."""

import shlex
from dataclasses import dataclass, replace
from typing import Any

import click

from gptjobs import checkpoint, record, trials, verdict
from gptjobs.cli import output
from gptjobs.cli.complete import jobs_argument
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.cli.tensors import evaluated_at
from gptjobs.config import HYPERPARAMETERS, Plan
from gptjobs.contract import value_in_words
from gptjobs.errors import NotFound, UsageError
from gptjobs.layout import Layout
from gptjobs.reference import jobs_on_record, pick
from gptjobs.trials import Evaluation
from gptjobs.verdict import CONFIDENCE, Difference


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A job with its newest evaluation, and the losses of its windows, where they are known."""

    name: str
    job: str
    plan: Plan
    last: Evaluation
    windows: list[float] | None

    @property
    def values(self) -> dict[str, Any]:
        return {**vars(self.plan.settled.model), **vars(self.plan.settled.train)}


@click.command(epilog="Example: gptjobs compare first second")
@jobs_argument
@click.option(
    "--eval-context", metavar="INT", type=click.IntRange(1),
    help="Evaluate their newest checkpoints anew, at this context; needs torch.",
)  # fmt: skip
@json_option
@pass_place
def compare(place: Place, jobs: tuple[str, ...], eval_context: int | None, as_json: bool) -> None:
    """What jobs have otherwise, and by how much their validation losses differ. They are ranked only where these were
    measured on the same windows, at the same context, after as many tokens."""
    known = jobs_on_record(place.layout)
    names = {each.id: each.name or each.id for each in known}
    ids = list(dict.fromkeys(pick(each, known) for each in jobs))
    if len(ids) < 2:
        raise UsageError("one job alone compares with nothing", hint="gptjobs compare JOB JOB")
    found = [_compared(place.layout, id, names[id]) for id in ids]
    if eval_context:
        tokens = min(each.plan.settled.train.eval_tokens for each in found)
        found = [_evaluated_anew(place.layout, each, eval_context, tokens) for each in found]
    why = _against_ranking(found)
    ranked = sorted(found, key=lambda each: each.last.val_loss) if why is None else found
    differences = [_difference(each, ranked[0]) for each in ranked[1:]] if why is None else []
    others = [name for name in HYPERPARAMETERS if len({each.values[name] for each in found}) > 1]
    if as_json:
        output.as_json(_record(ranked, differences, why, others))
        return
    output.table(
        ("", *(each.name for each in ranked)),
        [
            ("validation loss", *(f"{each.last.val_loss:.4f}" for each in ranked)),
            ("at context", *(str(each.last.context) for each in ranked)),
            ("tokens", *(f"{each.last.tokens:,}" for each in ranked)),
            ("step", *(f"{each.last.step:,}" for each in ranked)),
            *((name, *(value_in_words(each.values[name]) for each in ranked)) for name in others),
        ],
        right=range(1, 1 + len(ranked)),
    )
    output.result()
    output.say(f"curves over tokens: gptjobs plot {' '.join(shlex.quote(each.name) for each in ranked)}")
    if why is not None:
        output.result(f"not ranked: {why}")
        return
    for each, difference in zip(ranked[1:], differences, strict=True):
        output.result(f"{each.name} against {ranked[0].name}: {difference or 'their windows are not on record'}")
    output.say(f"nats a token; in brackets the {CONFIDENCE:.0%} interval of a bootstrap over the held-out windows")


def _compared(layout: Layout, job: str, name: str) -> Compared:
    plan = record.read_plan(layout, job)
    evaluations = trials.evaluations(layout, job)
    if plan is None or not evaluations:
        raise NotFound(f"job {name} has no validation loss yet", hint=f"gptjobs watch {name}")
    last = evaluations[-1]
    return Compared(name=name, job=job, plan=plan, last=last, windows=trials.windows(layout, job, last.step))


def _evaluated_anew(layout: Layout, job: Compared, context: int, tokens: int) -> Compared:
    """By its newest checkpoint."""
    checkpoints = checkpoint.counting(layout, job.job)
    if not checkpoints:
        raise NotFound(f"job {job.name} has no checkpoint", hint=f"gptjobs checkpoints list {job.name}")
    newest = checkpoints[-1]
    windows = evaluated_at(layout, newest, context, tokens)
    loss = sum(windows) / len(windows)
    last = Evaluation(newest.manifest.step, newest.manifest.tokens, loss, context)
    return replace(job, last=last, windows=windows)


def _against_ranking(found: list[Compared]) -> str | None:
    """Why their losses do not compare, or None."""
    first = found[0]
    for each in found[1:]:
        for what, one, other in (
            ("the data", first.plan.data_digest[:12], each.plan.data_digest[:12]),
            ("the encoding", first.plan.settled.train.encoding, each.plan.settled.train.encoding),
            ("the context of evaluations", first.last.context, each.last.context),
            ("the held-out windows", _windows(first), _windows(each)),
        ):
            if one != other:
                hint = f"; --eval-context {min(one, other)} here" if what == "the context of evaluations" else ""
                return f"{what} of {first.name} and {each.name} differ: {one} and {other}{hint}"
        step = max(one.plan.settled.train.batch_size * one.plan.settled.train.block_size for one in (first, each))
        if abs(first.last.tokens - each.last.tokens) > step:
            return (
                f"{first.name} and {each.name} were evaluated after {first.last.tokens:,} and {each.last.tokens:,} "
                "tokens; gptjobs plot shows them over tokens"
            )
    return None


def _windows(job: Compared) -> int:
    """How many, or where they are not known, how many were asked for."""
    return len(job.windows) if job.windows else job.plan.settled.train.eval_tokens // job.last.context


def _difference(one: Compared, other: Compared) -> Difference | None:
    first, second = one.windows, other.windows
    return verdict.difference([(first, second)]) if first and second and len(first) == len(second) else None


def _record(
    ranked: list[Compared], differences: list[Difference | None], why: str | None, others: list[str]
) -> dict[str, Any]:
    jobs = [
        {
            "id": each.job,
            "name": each.name,
            "val_loss": each.last.val_loss,
            "eval_context": each.last.context,
            "tokens": each.last.tokens,
            "step": each.last.step,
            "differs_in": {name: each.values[name] for name in others},
        }
        for each in ranked
    ]
    told = [None if each is None else {"mean": each.mean, "low": each.low, "high": each.high} for each in differences]
    return {"jobs": jobs, "ranked": why is None, "why_not": why, "against_the_best": told}
