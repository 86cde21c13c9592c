"""Jobs beside each other: their newest evaluations, what they have otherwise, and whether their losses differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptjobs import record, trials, verdict
from gptjobs.config import HYPERPARAMETERS, Plan
from gptjobs.errors import NotFound
from gptjobs.layout import Layout
from gptjobs.trials import Evaluation
from gptjobs.verdict import Difference


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


def compared(layout: Layout, job: str, name: str) -> Compared:
    """Raises NotFound for a job without a validation loss."""
    plan = record.read_plan(layout, job)
    evaluations = trials.evaluations(layout, job)
    if plan is None or not evaluations:
        raise NotFound(f"job {name} has no validation loss yet", hint=f"gptjobs watch {name}")
    last = evaluations[-1]
    return Compared(name=name, job=job, plan=plan, last=last, windows=trials.windows(layout, job, last.step))


def differing(jobs: Sequence[Compared]) -> list[str]:
    """The hyperparameters that are not the same for all."""
    return [name for name in HYPERPARAMETERS if len({each.values[name] for each in jobs}) > 1]


def against_ranking(found: Sequence[Compared]) -> str | None:
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


def difference(one: Compared, other: Compared) -> Difference | None:
    """None where the windows of one of them are not on record."""
    first, second = one.windows, other.windows
    return verdict.difference([(first, second)]) if first and second and len(first) == len(second) else None
