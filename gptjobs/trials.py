"""What became of a sweep's trials, by the storage root alone: their jobs, their evaluations, their order."""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gptjobs import checkpoint, durable, record
from gptjobs.checkpoint import Checkpoint
from gptjobs.config import Settled
from gptjobs.errors import NotFound, Refused
from gptjobs.history import History, attempt_lines
from gptjobs.job import JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.sweep import UNITS, Sweep, Trial, job_of_trial

GOING_ON, STOPPED, FINISHED = "going on", "stopped", "finished"
"""what a sweep is"""
PRUNED = "pruned"
"""the reason of a job that a pruner stopped"""


@dataclass(frozen=True)
class Evaluation:
    """The validation loss at a step, in nats a token, in windows of `context`."""

    step: int
    tokens: int
    val_loss: float
    context: int


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A trial with what became of it."""

    trial: Trial
    jobs: Sequence[str]
    """of its parts; the first, and one for each time that it went on after a pruner had stopped it"""
    outcome: Outcome | None
    """how the newest part ended; None while it goes on"""
    settled: Settled | None
    """of the first part; None before a worker took it"""
    evaluations: Sequence[Evaluation]

    @property
    def job(self) -> str:
        """The newest part's."""
        return self.jobs[-1]

    @property
    def goes_on(self) -> bool:
        return self.outcome is None

    @property
    def is_pruned(self) -> bool:
        return self.outcome is not None and self.outcome.reason == PRUNED

    @property
    def is_whole(self) -> bool:
        """Whether it trained to its end, and has a loss there."""
        ended = self.outcome is not None and self.outcome.state is JobState.FINISHED and not self.is_pruned
        return ended and self.last is not None

    @property
    def last(self) -> Evaluation | None:
        return self.evaluations[-1] if self.evaluations else None

    @property
    def state(self) -> str:
        if self.outcome is None:
            return "going on"
        return PRUNED if self.is_pruned else self.outcome.state.value

    def by_unit(self) -> dict[int, float]:
        """The first validation loss at or after each of UNITS parts of its training."""
        found: dict[int, float] = {}
        for each in self.evaluations:
            if (unit := self._unit(each)) > 0:
                found.setdefault(unit, each.val_loss)
        return found

    def _unit(self, evaluation: Evaluation) -> int:
        if self.settled is None:
            return 0
        return (evaluation.step - self.settled.start_step) * UNITS // self.settled.train.steps

    @property
    def is_at_a_new_unit(self) -> bool:
        """Whether its newest evaluation is the first of its unit: a part that goes on begins with one more of the unit
        that the part before it ended in."""
        newest = [self._unit(each) for each in self.evaluations[-2:]]
        return bool(newest) and newest[-1] > (newest[0] if len(newest) > 1 else 0)


def write_sweep(layout: Layout, sweep: Sweep) -> bool:
    """`sweep.json`; False where it is there already."""
    durable.make_folder(layout.job_outputs(sweep.id))
    return _is_first(layout.sweep_file(sweep.id), sweep)


def forget(layout: Layout, sweep: Sweep) -> None:
    """Take back a `sweep.json` that was just written, of a sweep that was refused."""
    layout.sweep_file(sweep.id).unlink()
    layout.addresses_file(sweep.id).unlink(missing_ok=True)
    layout.job_outputs(sweep.id).rmdir()


def read_sweep(layout: Layout, id: str) -> Sweep:
    """Raises NotFound for none, Refused for one that this version cannot read."""
    path = layout.sweep_file(id)
    try:
        return Sweep.from_dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise NotFound(f"there is no sweep {id}", hint="gptjobs sweep list") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{path} cannot be read: {error!r}") from error


def sweeps(layout: Layout) -> list[Sweep]:
    """Those on record, oldest first."""
    found = []
    for path in layout.outputs.glob("*/sweep.json"):
        with suppress(NotFound, Refused):  # one that cannot be read hides no other
            found.append(read_sweep(layout, path.parent.name))
    return sorted(found, key=lambda each: each.submitted_at)


def write_trial(layout: Layout, sweep: str, trial: Trial) -> bool:
    """A sample, before it trains; False where another one has its number already."""
    durable.make_folder(layout.trials(sweep))
    return _is_first(layout.trial_file(sweep, trial.number), trial)


def _is_first(path: Path, content: Sweep | Trial) -> bool:
    try:
        durable.create(path, durable.to_json(content.to_dict()))
    except FileExistsError:
        return False
    return True


def read(layout: Layout, sweep: str) -> list[Tried]:
    """The trials that were written down, by number; raises Refused for one that cannot be read."""
    found: list[Tried] = []
    while (path := layout.trial_file(sweep, len(found))).is_file():
        found.append(_tried(layout, sweep, _read_trial(path)))
    return found


def _read_trial(path: Path) -> Trial:
    try:
        return Trial.from_dict(json.loads(path.read_bytes()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{path} cannot be read: {error!r}") from error


def _tried(layout: Layout, sweep: str, trial: Trial) -> Tried:
    jobs: list[str] = []
    while layout.job_file(job := job_of_trial(sweep, trial.number, len(jobs))).exists():
        jobs.append(job)
    outcome = record.read_outcome(layout, jobs[-1]) if jobs else None
    plan = record.read_plan(layout, jobs[0]) if jobs else None
    found: list[Evaluation] = []
    for each in jobs:
        ended = each != jobs[-1] or outcome is not None
        of_part = _evaluations_of_ended(layout, each) if ended else evaluations(layout, each)
        found += [new for new in of_part if not found or new.step > found[-1].step]
    return Tried(trial=trial, jobs=jobs, outcome=outcome, settled=plan.settled if plan else None, evaluations=found)


def evaluations(layout: Layout, job: str) -> list[Evaluation]:
    """Of a job, by step."""
    metrics = History(layout, job).read().metrics
    return [
        Evaluation(each["step"], each["tokens"], each["val_loss"], each["eval_context"])
        for each in metrics
        if each["val_loss"] is not None
    ]


_evaluations_of_ended = lru_cache(maxsize=4096)(evaluations)


@dataclass(frozen=True)
class Ranking:
    """Trials by their validation loss, best first, and why the others are not among them."""

    ranked: Sequence[Tried]
    left_out: Sequence[tuple[Tried, str]]


def rank(tried: Sequence[Tried]) -> Ranking:
    """Those that were evaluated at the same context after as many tokens: others do not compare."""
    whole = [each for each in tried if each.is_whole]
    tokens = max((_tokens(each) for each in whole), default=0)
    contexts = {each.last.context for each in whole if each.last}
    ranked, left_out = [], []
    for each in tried:
        if why := _against(each, tokens, contexts):
            left_out.append((each, why))
        else:
            ranked.append(each)
    return Ranking(sorted(ranked, key=_loss), left_out)


def _against(each: Tried, tokens: int, contexts: set[int]) -> str | None:
    """Why a trial is not ranked, or None."""
    if not each.is_whole:
        return each.outcome.reason if each.outcome else each.state
    if len(contexts) > 1:
        return f"evaluated at different contexts: {', '.join(map(str, sorted(contexts)))}"
    assert each.settled is not None
    if _tokens(each) + each.settled.train.batch_size * each.settled.train.block_size < tokens:
        return f"ended after {_tokens(each):,} of {tokens:,} tokens"
    return None


def _tokens(each: Tried) -> int:
    return each.last.tokens if each.last else 0


def _loss(each: Tried) -> float:
    return each.last.val_loss if each.last else math.inf


def best_checkpoint(layout: Layout, sweep: str) -> Checkpoint:
    """The last checkpoint of the best trial; raises NotFound where none is whole."""
    ranked = rank(read(layout, sweep)).ranked
    if not ranked:
        raise NotFound(f"no trial of sweep {sweep} has made all its steps yet", hint=f"gptjobs sweep show {sweep}")
    counting = checkpoint.counting(layout, ranked[0].job)
    if not counting:
        raise NotFound(
            f"the best trial of sweep {sweep} has no good checkpoint any more",
            hint=f"gptjobs checkpoints list {ranked[0].job}",
        )
    return counting[-1]


def start_of(layout: Layout, sweep: Sweep) -> tuple[Settled | None, int]:
    """The values of the checkpoint that trials start from, and its step; None and 0 from scratch."""
    if sweep.parent is None:
        return None, 0
    manifest = checkpoint.read(layout, sweep.parent).manifest
    return manifest.settled, manifest.step


def windows(layout: Layout, job: str, step: int) -> list[float] | None:
    """The losses of the held-out windows at a step, see progress.Evaluated; None where they were not reported."""
    for attempt in reversed(checkpoint.attempts(layout, job)):
        for line in attempt_lines(layout, job, attempt.token)[0]:
            if line["kind"] == "evaluated" and line["step"] == step:
                return list(line["losses"])
    return None
