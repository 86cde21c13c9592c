"""What a diagnosis is made from: a job's lines along its lineage and its parents', its spikes, its text; or a log."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptjobs import checkpoint, history, record
from gptjobs.config import Plan, known
from gptjobs.course import plan_of
from gptjobs.diagnosis import OUTLIER
from gptjobs.errors import Refused
from gptjobs.history import History
from gptjobs.layout import Layout
from gptjobs.progress import FALL, MEMORY_GROWTH, SLOWDOWN, SPIKE
from gptjobs.ranges import Range

LOG_RISE = OUTLIER
"""A log has a spike where its loss is above the lowest before by this part of it, to the end or twice in a row."""


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


@dataclass(frozen=True, kw_only=True)
class Case:
    """`plan` is None for a log, of which only what was said with it is known."""

    name: str
    reference: str
    """what commands call it"""
    points: tuple[Point, ...]
    plan: Plan | None = None
    parents: Mapping[str, Plan] = None  # type: ignore[assignment]
    """by the jobs that made the earlier points"""
    rises: tuple[Rise, ...] = ()
    slow: tuple[Mapping[str, Any], ...] = ()
    """alerts of slowdowns and of memory that grew"""
    checkpoints: tuple[int, ...] = ()
    """steps of those of the job that count"""
    parent: str | None = None
    """what commands call the checkpoint that the job started from"""
    text: TextFacts | None = None
    batch_size: int | None = None
    block_size: int | None = None

    @property
    def tokens_a_step(self) -> int | None:
        return self.batch_size * self.block_size if self.batch_size and self.block_size else None


def of_job(layout: Layout, job: str, name: str) -> Case:
    """Raises NotFound for a job that no worker took yet, Refused for one without a line."""
    plan = plan_of(layout, job)
    own = _points(History(layout, job).read().metrics, job)
    if not own:
        raise Refused(f"job {name} has reported no losses yet", hint=f"gptjobs watch {name}")
    before, parents = _of_parents(layout, plan)
    alerts = [
        {**line, "token": each.token}
        for each in checkpoint.attempts(layout, job)
        for line in history.attempt_lines(layout, job, each.token)[0]
        if line["kind"] == "alert"
    ]
    records = list(flights(layout, job))
    train = plan.settled.train
    return Case(
        name=name,
        reference=name,
        points=(*before, *own),
        plan=plan,
        parents=parents,
        rises=tuple(_rise(each, records) for each in alerts if each["name"] in (SPIKE, FALL)),
        slow=tuple(each for each in alerts if each["name"] in (SLOWDOWN, MEMORY_GROWTH)),
        checkpoints=tuple(each.manifest.step for each in checkpoint.counting(layout, job)),
        parent=plan.parent,
        batch_size=train.batch_size,
        block_size=train.block_size,
    )


def _points(metrics: Iterable[Mapping[str, Any]], job: str | None) -> tuple[Point, ...]:
    return tuple(Point(**{**known(Point.__dataclass_fields__, each), "job": job}) for each in metrics)


def _of_parents(layout: Layout, plan: Plan) -> tuple[tuple[Point, ...], dict[str, Plan]]:
    """The points that lead to the checkpoint that the job started from, oldest first."""
    points: tuple[Point, ...] = ()
    plans: dict[str, Plan] = {}
    parent = plan.parent
    while parent is not None:
        manifest = checkpoint.read(layout, parent).manifest
        made = record.read_plan(layout, manifest.job) if manifest.job else None
        if made is None or manifest.job is None:
            break
        metrics = History(layout, manifest.job).read().metrics
        points = _points([each for each in metrics if each["step"] <= manifest.step], manifest.job) + points
        plans[manifest.job], parent = made, made.parent
    return points, plans


def flights(layout: Layout, job: str) -> Iterator[dict[str, Any]]:
    """A job's flight records that have steps."""
    for path in sorted(layout.flight(job).glob("*.json")):
        with suppress(ValueError):
            found = json.loads(path.read_bytes())
            if found["steps"]:
                yield found


def _rise(alert: Mapping[str, Any], flights: Sequence[Mapping[str, Any]]) -> Rise:
    of_it = [
        flight
        for flight in flights
        if flight["token"] == alert["token"] and flight["steps"] and flight["steps"][-1]["step"] >= alert["step"]
    ]
    windows = alert.get("windows")
    return Rise(
        since=alert["since"] or alert["step"],
        step=alert["step"],
        reason=alert["reason"],
        is_fall=alert["name"] == FALL,
        token=alert["token"],
        windows=(windows[0], windows[1]) if windows else None,
        steps=tuple(of_it[0]["steps"]) if of_it else (),
    )


_NUMBER = r"([-+0-9.eE]+|nan|inf)"
_LINE = re.compile(rf"\b(?:step|iter)\s+(\d+)\b[^\n]*?\bloss\s+{_NUMBER}", re.IGNORECASE)
_PARTS = {
    "train_loss": re.compile(rf"train(?:ing)? loss:?\s+{_NUMBER}", re.IGNORECASE),
    "val_loss": re.compile(rf"val(?:idation)? loss:?\s+{_NUMBER}", re.IGNORECASE),
    "learning_rate": re.compile(rf"\b(?:lr|learning rate):?\s+{_NUMBER}", re.IGNORECASE),
    "grad_norm": re.compile(rf"\b(?:grad(?:ient)? )?norm:?\s+{_NUMBER}", re.IGNORECASE),
    "tokens_per_s": re.compile(r"([0-9,]+) tokens/s"),
}
_PLAIN_LOSS = re.compile(rf"\bloss:?\s+{_NUMBER}", re.IGNORECASE)


def of_file(path: Path, *, batch_size: int | None = None, block_size: int | None = None) -> Case:
    """A metrics.jsonl, or a log with lines such as `Step 2000: train loss 6.51, val loss 6.65` (this program's own,
    nanoGPT's, older projects'). Raises Refused for a file without such lines."""
    points = _of_lines(path.read_text(errors="replace").splitlines())
    if not points:
        raise Refused(
            f"{path} has no losses that can be read",
            hint="a log with lines such as `Step 2000: train loss 6.51, val loss 6.65`, or a metrics.jsonl",
        )
    size = batch_size * block_size if batch_size and block_size else None
    if size:
        points = [replace(each, tokens=each.tokens or each.step * size) for each in points]
    found = Case(
        name=path.name, reference="", points=tuple(points), parents={}, batch_size=batch_size, block_size=block_size
    )
    return replace(found, rises=tuple(_rises_of_log(points)))


def _of_lines(lines: Iterable[str]) -> list[Point]:
    """By step; where a step comes twice, as after a resume, the later line counts."""
    found: dict[int, Point] = {}
    for line in lines:
        point = _of_json(line) if line.startswith("{") else _of_words(line)
        if point is not None:
            earlier = found.get(point.step)
            if earlier and point.val_loss is None:
                point = replace(point, val_loss=earlier.val_loss)
            found[point.step] = point
    return [found[step] for step in sorted(found)]


def _of_json(line: str) -> Point | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    is_line = isinstance(values, dict) and isinstance(values.get("step"), int) and "train_loss" in values
    return Point(**known(set(Point.__dataclass_fields__) - {"job"}, values)) if is_line else None


def _of_words(line: str) -> Point | None:
    found = _LINE.search(line)
    if found is None:
        return None
    values = {name: _number(each[1]) for name, part in _PARTS.items() if (each := part.search(line))}
    if "train_loss" not in values and "val_loss" not in values and (plain := _PLAIN_LOSS.search(line)):
        values["train_loss"] = _number(plain[1])
    return Point(step=int(found[1]), **values)  # type: ignore[arg-type]


def _number(text: str) -> float | None:
    try:
        value = float(text.replace(",", "").rstrip("."))
    except ValueError:
        return None
    return value if value == value and abs(value) != float("inf") else None


def _rises_of_log(points: Sequence[Point]) -> Iterable[Rise]:
    """Of few lines, each a mean or an evaluation."""
    losses = [(each.step, each.val_loss if each.val_loss is not None else each.train_loss) for each in points]
    known_losses = [(step, loss) for step, loss in losses if loss is not None]
    lowest = float("inf")
    high: list[tuple[int, float]] = []
    for step, loss in known_losses:
        if loss > (1 + LOG_RISE) * lowest:
            high.append((step, loss))
            continue
        if len(high) > 1:
            yield _rise_of_log(high, lowest)
        high, lowest = [], min(lowest, loss)
    if high:
        yield _rise_of_log(high, lowest)


def _rise_of_log(high: Sequence[tuple[int, float]], lowest: float) -> Rise:
    now = max(loss for _, loss in high)
    reason = f"the loss rose from {lowest:.4f} to {now:.4f} at step {high[0][0]}"
    return Rise(since=high[0][0], step=high[-1][0], reason=reason)
