"""What a diagnosis is made from: a job's lines along its lineage and its parents', its spikes, its text; or a log."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from gptjobs import checkpoint, history, record
from gptjobs.checkpoint import GOOD, Checkpoint
from gptjobs.config import Overrides, Plan, known
from gptjobs.course import plan_of
from gptjobs.errors import NotFound, Refused
from gptjobs.history import History
from gptjobs.layout import Layout
from gptjobs.progress import FALL, MEMORY_GROWTH, SLOWDOWN, SPIKE
from gptjobs.ranges import Range


@dataclass(frozen=True, kw_only=True)
class Point:
    """A line of progress; None for what it does not tell."""

    step: int
    tokens: int | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    eval_context: int | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    micro_norm: float | None = None
    micro_windows: int | None = None
    tokens_per_s: float | None = None
    job: str | None = None
    """whose it is"""


@dataclass(frozen=True, kw_only=True)
class Rise:
    """A spike or fall that was seen, from the step `since` on. `steps` are those of the flight record, oldest first;
    `windows` the places in the order that it had seen."""

    since: int
    step: int
    reason: str
    is_fall: bool = False
    token: int | None = None
    windows: Range | None = None
    starts: tuple[int, ...] = ()
    """the tokens at which these windows begin"""
    steps: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Odd:
    """A stretch of the text that is not like the rest."""

    first: int
    last: int
    line: int
    score: float
    why: str
    text: str


@dataclass(frozen=True, kw_only=True)
class TextFacts:
    """Of the text that was trained on: its tokens, the entropy of their frequencies in nats, what is odd in it."""

    tokens: int
    unigram: float
    odd: tuple[Odd, ...] = ()
    source: str | None = None
    """what commands call it, where no plan tells; and its encoding"""
    encoding: str | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """`plan` is None for a log, of which only what was said with it is known."""

    name: str
    reference: str
    """what commands call it"""
    points: tuple[Point, ...]
    plan: Plan | None = None
    overrides: Overrides = field(default_factory=dict)
    """what the job was asked for"""
    parents: Mapping[str, Plan] = field(default_factory=dict)
    """by the jobs that made the earlier points, the newest first"""
    rises: tuple[Rise, ...] = ()
    slow: tuple[Mapping[str, Any], ...] = ()
    """alerts of slowdowns and of memory that grew"""
    checkpoints: tuple[int, ...] = ()
    """steps of those of the job that count"""
    parent: str | None = None
    """what commands call the checkpoint that the job started from, where one can start from it"""
    accepts_data_change: bool = False
    """whether the job was asked to train on data that this checkpoint has not seen"""
    text: TextFacts | None = None
    batch_size: int | None = None
    block_size: int | None = None

    @property
    def tokens_a_step(self) -> int | None:
        return self.batch_size * self.block_size if self.batch_size and self.block_size else None


def losses_of(points: Sequence[Point]) -> list[tuple[int, float]]:
    """With their steps: of training, or of validation where more of these are known. The two are not mixed: one lies
    above the other."""
    train = [(each.step, each.train_loss) for each in points if each.train_loss is not None]
    validation = [(each.step, each.val_loss) for each in points if each.val_loss is not None]
    return train if len(train) >= len(validation) else validation


def of_job(layout: Layout, job: str, name: str) -> Case:
    """Raises NotFound for a job that no worker took yet, Refused for one without a line."""
    plan = plan_of(layout, job)
    own = _points(History(layout, job).read().metrics, job)
    if not own:
        raise Refused(f"job {name} has reported no losses yet", hint=f"gptjobs watch {name}")
    before, parents = _of_parents(layout, plan)
    spec, start = record.read_spec(layout, job), _checkpoint(layout, plan.parent)
    alerts = [
        {**line, "token": each.token}
        for each in checkpoint.attempts(layout, job)
        for line in history.attempt_lines(layout, job, each.token)[0]
        if line["kind"] == "alert"
    ]
    train = plan.settled.train
    return Case(
        name=name,
        reference=name,
        points=(*before, *own),
        plan=plan,
        overrides=spec.overrides,
        parents=parents,
        rises=_rises(alerts, flights(layout, job)),
        slow=tuple(each for each in alerts if each["name"] in (SLOWDOWN, MEMORY_GROWTH)),
        checkpoints=tuple(each.manifest.step for each in checkpoint.counting(layout, job)),
        parent=start.name if start and start.manifest.status == GOOD else None,
        accepts_data_change=spec.accept_data_change,
        batch_size=train.batch_size,
        block_size=train.block_size,
    )


def _points(metrics: Iterable[Mapping[str, Any]], job: str | None) -> tuple[Point, ...]:
    return tuple(Point(**{**known(Point.__dataclass_fields__, each), "job": job}) for each in metrics)


def _checkpoint(layout: Layout, name: str | None) -> Checkpoint | None:
    """None also for one that was deleted or torn since: a diagnosis does without."""
    with suppress(NotFound, Refused):
        return checkpoint.read(layout, name) if name is not None else None
    return None


def _of_parents(layout: Layout, plan: Plan) -> tuple[tuple[Point, ...], dict[str, Plan]]:
    """The points that lead to the checkpoint that the job started from, oldest first."""
    points: tuple[Point, ...] = ()
    plans: dict[str, Plan] = {}
    start = _checkpoint(layout, plan.parent)
    while start is not None and start.manifest.job is not None:
        manifest, job = start.manifest, start.manifest.job
        made = record.read_plan(layout, job)
        if made is None:
            break
        metrics = History(layout, job).read().metrics
        points = _points([each for each in metrics if each["step"] <= manifest.step], job) + points
        plans[job], start = made, _checkpoint(layout, made.parent)
    return points, plans


def flights(layout: Layout, job: str) -> list[Mapping[str, Any]]:
    """The flight records of a job that can be read and have steps, by attempt and step."""
    found = []
    for path in layout.flight(job).glob("*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            content = json.loads(path.read_bytes())
            last = content["steps"][-1]
            if all(each.keys() >= _OF_STEP for each in content["steps"]):
                found.append((int(content["token"]), int(last["step"]), content))
    return [content for _, _, content in sorted(found, key=lambda each: each[:2])]


_OF_STEP = {"step", "loss", "learning_rate", "grad_norm"}
"""what a step of a flight record has, at least"""


def _rises(alerts: Sequence[Mapping[str, Any]], flown: Sequence[Mapping[str, Any]]) -> tuple[Rise, ...]:
    """Each once: an attempt that begins anew from a checkpoint may meet the same one on the same windows."""
    found: dict[Any, Rise] = {}
    for each in alerts:
        if each["name"] in (SPIKE, FALL):
            made = _rise(each, flown)
            found[made.since, made.windows or made.token] = made
    return tuple(found.values())


def _rise(alert: Mapping[str, Any], flown: Sequence[Mapping[str, Any]]) -> Rise:
    of_it = [each for each in flown if each["token"] == alert["token"] and each["steps"][-1]["step"] >= alert["step"]]
    windows = alert.get("windows")
    return Rise(
        since=alert.get("since") or alert["step"],
        step=alert["step"],
        reason=alert["reason"],
        is_fall=alert["name"] == FALL,
        token=alert["token"],
        windows=(windows[0], windows[1]) if windows else None,
        steps=tuple(of_it[0]["steps"]) if of_it else (),
    )
