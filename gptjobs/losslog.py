"""A case from a log alone: this program's own, nanoGPT's, older projects', or a metrics.jsonl."""

import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from gptjobs.case import Case, Point, Rise, losses_of
from gptjobs.config import known
from gptjobs.diagnosis import NOISE_STEPS, NOISES, OUTLIER, Detector, noise
from gptjobs.errors import Refused

RISE = OUTLIER
"""The loss of a log that has few lines rose where it is above the lowest before by this part of it, twice in a row or
at the end."""
MANY_LINES = 2 * NOISE_STEPS
"""of which a spike is told as it is of steps"""
SOME_LINES = NOISE_STEPS // 2
"""of which their noise is known: a rise must be above that too"""
_MOST_GROUPS = 10_000
"""that lines are put into, to look for a rise"""
_LINE_LENGTH = 1 << 12
"""characters: a longer line, which no log has, is read in pieces"""
_LARGEST = 2**53
"""step or count, up to which floats count"""

_IS = r"\s*[:=]?\s*"
_NUMBER = r"([-+]?[0-9]+\.?[0-9]*(?:e[-+]?[0-9]+)?|[-+]?nan|[-+]?inf)"
_LINE = re.compile(rf"\b(?:step|iter|iteration){_IS}(\d{{1,15}})\b.{{0,200}}?loss{_IS}{_NUMBER}")
_NAMED = {
    "train_loss": r"train(?:ing)?[ _]loss",
    "val_loss": r"(?:val|valid|validation|eval)[ _]loss",
    "learning_rate": r"\b(?:lr|learning[ _]rate)",
    "grad_norm": r"\b(?:grad(?:ient)?[ _])?norm",
    "loss": r"\bloss",
}
_VALUE = re.compile("|".join(f"(?P<{name}>{words}{_IS}{_NUMBER})" for name, words in _NAMED.items()))
_SPEED = re.compile(r"([0-9][0-9,.]*) tokens/s")


def of_file(path: Path, *, batch_size: int | None = None, block_size: int | None = None) -> Case:
    """A metrics.jsonl, or a log with lines such as `Step 2000: train loss 6.51, val loss 6.65`. Raises Refused for a
    file without such lines."""
    with path.open(errors="replace") as file:
        points = _of_lines(iter(partial(file.readline, _LINE_LENGTH), ""))
    if not points:
        raise Refused(
            f"{path} has no losses that can be read",
            hint="a log with lines such as `Step 2000: train loss 6.51, val loss 6.65`, or a metrics.jsonl",
        )
    size = batch_size * block_size if batch_size and block_size else None
    if size:
        points = [replace(each, tokens=each.step * size if each.tokens is None else each.tokens) for each in points]
    return Case(
        name=path.name, reference="", points=tuple(points), rises=tuple(rises(points)), batch_size=batch_size,
        block_size=block_size,
    )  # fmt: skip


def _of_lines(lines: Iterable[str]) -> list[Point]:
    """By step. Where the steps go back, as after a resume, the later lines count; lines of one step are put together,
    the later one first."""
    found: list[Point] = []
    for line in lines:
        point = _of_json(line) if line.startswith("{") else _of_words(line)
        if point is None:
            continue
        while found and found[-1].step > point.step:
            found.pop()
        if found and found[-1].step == point.step:
            told = {name: value for name, value in vars(point).items() if value is not None}
            found[-1] = replace(found[-1], **told)
        else:
            found.append(point)
    return found


def _of_json(line: str) -> Point | None:
    """None for what is no line of progress; a value that its field does not hold is not known."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not {"train_loss", "val_loss"} & record.keys():
        return None
    values = {name: value for name, value in known(_FIELDS, record).items() if _holds(_FIELDS[name], value)}
    return Point(**values) if "step" in values else None


_FIELDS: Mapping[str, Any] = {name: kind for name, kind in get_type_hints(Point).items() if name != "job"}


def _holds(kind: Any, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return isinstance(value, int) and 0 <= value <= _LARGEST if kind in (int, int | None) else abs(value) <= _LARGEST


def _of_words(line: str) -> Point | None:
    line = line.lower()
    found = _LINE.search(line) if "loss" in line else None
    if found is None:
        return None
    values: dict[str, float | None] = {}
    for each in _VALUE.finditer(line):
        values.setdefault(str(each.lastgroup), _number(each[(each.lastindex or 0) + 1]))
    plain = values.pop("loss", None)
    if not values.keys() & {"train_loss", "val_loss"}:
        values["train_loss"] = plain
    if speed := _SPEED.search(line):
        values["tokens_per_s"] = _number(speed[1])
    return Point(step=int(found[1]), **values)  # type: ignore[arg-type]  # of these names all are numbers


def _number(text: str) -> float | None:
    try:
        value = float(text.replace(",", "").rstrip("."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def rises(points: Sequence[Point]) -> Iterator[Rise]:
    """Of a log, by its lines; a loss that is no number is above all others."""
    losses = losses_of(points)
    lost = [(each.step, math.inf) for each in points if each.train_loss is None and each.val_loss is None]
    losses = sorted(losses + lost)
    yield from _of_many(losses) if len(losses) >= MANY_LINES else _of_few(losses)


def _of_many(losses: Sequence[tuple[int, float]]) -> Iterator[Rise]:
    """As the trainer's guard sees them, in lines, or medians of several, instead of steps."""
    detector = Detector()
    size = 1 + len(losses) // _MOST_GROUPS
    for first in range(0, len(losses), size):
        step, loss = losses[first][0], statistics.median(loss for _, loss in losses[first : first + size])
        spike = detector.add(step, loss)
        if spike is not None:
            reason = _reason(spike.level, spike.now, spike.since)
            yield Rise(since=spike.since, step=spike.step, reason=reason, is_fall=spike.is_fall)
            detector = Detector()


def _of_few(losses: Sequence[tuple[int, float]]) -> Iterator[Rise]:
    """Lines of a mean or an evaluation each."""
    lowest = math.inf
    high: list[tuple[int, float]] = []
    spread = _noise_of_line([loss for _, loss in losses]) if len(losses) >= SOME_LINES else 0.0
    for step, loss in losses:
        if loss > lowest + max(RISE * abs(lowest), NOISES * spread):
            high.append((step, loss))
            continue
        if len(high) > 1:
            yield _rise(high, lowest)
        high, lowest = [], min(lowest, loss)
    if high:
        yield _rise(high, lowest)


def _noise_of_line(losses: Sequence[float]) -> float:
    """The standard deviation of a line, by what it has beside the course's slope: second differences have six times
    its variance."""
    bends = [a - 2 * b + c for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
    return noise([each for each in bends if math.isfinite(each)]) / math.sqrt(6)


def _rise(high: Sequence[tuple[int, float]], lowest: float) -> Rise:
    since, now = high[0][0], max(loss for _, loss in high)
    return Rise(since=since, step=high[-1][0], reason=_reason(lowest, now, since))


def _reason(level: float, now: float, since: int) -> str:
    if math.isinf(now):
        return f"the loss is no number from step {since} on"
    return f"the loss {'fell' if now < level else 'rose'} from {level:.4f} to {now:.4f} from step {since} on"
