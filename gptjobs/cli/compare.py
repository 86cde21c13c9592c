"""`gptjobs compare`: jobs beside each other, and whether their losses differ."""

import shlex
from dataclasses import replace
from typing import Any

import click

from gptjobs import checkpoint
from gptjobs.cli import output
from gptjobs.cli.complete import jobs_argument
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.cli.tensors import evaluated_at
from gptjobs.comparison import Compared, against_ranking, compared, difference, differing
from gptjobs.contract import value_in_words
from gptjobs.errors import NotFound, UsageError
from gptjobs.layout import Layout
from gptjobs.reference import jobs_on_record, pick
from gptjobs.trials import Evaluation
from gptjobs.verdict import CONFIDENCE, Difference


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
    found = [compared(place.layout, id, names[id]) for id in ids]
    if eval_context:
        tokens = min(each.plan.settled.train.eval_tokens for each in found)
        found = [_evaluated_anew(place.layout, each, eval_context, tokens) for each in found]
    why = against_ranking(found)
    ranked = sorted(found, key=lambda each: each.last.val_loss) if why is None else found
    differences = [difference(each, ranked[0]) for each in ranked[1:]] if why is None else []
    others = differing(found)
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
    for each, seen in zip(ranked[1:], differences, strict=True):
        output.result(f"{each.name} against {ranked[0].name}: {seen or 'their windows are not on record'}")
    output.say(f"nats a token; in brackets the {CONFIDENCE:.0%} interval of a bootstrap over the held-out windows")


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
