"""The trainer's lines: what a trainer reports on its standard output, encoded and decoded.

A line is one JSON object with `schema` and `kind`. Fields that a reader does not know are ignored; NaN
and infinities, which JSON has not, are sent as null.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from gptjobs import durable

SCHEMA = 1
SPIKE, FALL, OUTLIER, NOT_FINITE = "spike", "fall", "outlier", "not_finite"
SLOWDOWN, MEMORY_GROWTH, PLATEAU, CHECKPOINT_FAILED = "slowdown", "memory_growth", "plateau", "checkpoint_failed"
"""names of alerts"""
MOST_GROUPS = 256
"""of an evaluation's windows in a line"""
LOSS_DIGITS = 6
"""after the point"""
_LARGEST = 1e300
"""of any number in a line"""

Stage = Literal["encoding", "loading", "probing", "training", "evaluating", "saving"]
TrainerOutcome = Literal["finished", "target", "patience", "stopped", "diverged", "failed"]


@dataclass(frozen=True, kw_only=True)
class StageBegan:
    """What the trainer does from now on, and how far it is (0 to 1) where that is known."""

    kind: ClassVar[str] = "stage"
    stage: Stage
    done: float | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """After `step` updates. Losses are in nats a token; `train_loss` is the mean over the steps since the
    last line, `val_loss` is there only where it was evaluated at this step, at `eval_context` tokens."""

    kind: ClassVar[str] = "progress"
    step: int
    end_step: int
    tokens: int
    train_loss: float | None
    val_loss: float | None = None
    eval_context: int | None = None
    learning_rate: float
    grad_norm: float | None
    tokens_per_s: float | None
    eta_s: float | None
    micro_norm: float | None = None
    """norm of the mean gradient of this update's first `micro_windows` windows, where it was computed in parts"""
    micro_windows: int | None = None
    mfu: float | None = None
    """part of the device's products that training uses, where its peak is known"""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The held-out windows of an evaluation, in order, in at most MOST_GROUPS groups that differ by a window at most:
    their mean losses in nats a token. Of jobs that were evaluated on the same windows, they compare one by one."""

    kind: ClassVar[str] = "evaluated"
    step: int
    eval_context: int
    eval_tokens: int
    losses: list[float]


@dataclass(frozen=True, kw_only=True)
class CheckpointWritten:
    """A checkpoint was committed; `name` is its file's. `stall_s` is how long the loop waited for it: for its copy, and
    for what of writing it was left when the next was due, or the attempt ended."""

    kind: ClassVar[str] = "checkpoint"
    name: str
    step: int
    tokens: int
    size: int
    val_loss: float | None
    stall_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Fewer windows are on the device at once from `step` on: `before` did not fit. An update has as many."""

    kind: ClassVar[str] = "micro_batch"
    step: int
    device: str
    before: int
    windows: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ArithmeticSettled:
    """How the attempt computes, in words. `before` is otherwise: from `step` on, the job is not bit-equal to one that
    was never stopped."""

    kind: ClassVar[str] = "arithmetic"
    step: int
    words: str
    before: str | None


@dataclass(frozen=True, kw_only=True)
class Alert:
    """Someone should look: `name` says at what (one of those above). Of a spike or
    outlier, the step it began at and the windows of the data, by their places in the order from the first to before
    the last, that its steps had seen; of an outlier also the tokens that the first of these begin at."""

    kind: ClassVar[str] = "alert"
    name: str
    step: int
    reason: str
    since: int | None = None
    windows: list[int] | None = None
    starts: list[int] | None = None
    tokens_per_s: float | None = None
    usual_tokens_per_s: float | None = None
    """of the job's own first minutes"""
    loss: float | None = None
    """of a plateau: where the validation loss stands"""
    host: dict[str, Any] | None = None
    """what it was like at that moment, see worker/conditions.py"""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The trainer's last line, the truth about its outcome. `exit_code` is that of the error, if one; `cause` is
    a job.Cause where it failed."""

    kind: ClassVar[str] = "finished"
    outcome: TrainerOutcome
    step: int | None
    reason: str | None = None
    hint: str | None = None
    exit_code: int = 0
    cause: str | None = None


Line = StageBegan | Progress | Evaluated | CheckpointWritten | MicroBatch | Alert | ArithmeticSettled | Finished
KINDS: dict[str, type[Line]] = {each.kind: each for each in get_args(Line)}

_PLAIN: Mapping[Any, frozenset[type]] = {
    int: frozenset({int}), float: frozenset({int, float}), str: frozenset({str}), NoneType: frozenset({NoneType}),
}  # fmt: skip
"""what JSON has for a field of such a type: a whole number is a number too, true is none"""


def _check_of(type_: Any) -> Callable[[Any], bool]:
    """Tells whether a field of that type holds a value. Made once, as a job has many lines; NaN is held by none."""
    if get_origin(type_) is Literal:
        words = get_args(type_)
        return lambda value: value in words
    if get_origin(type_) is list:
        holds = _check_of(get_args(type_)[0])
        return lambda value: isinstance(value, list) and all(map(holds, value))
    if get_origin(type_) is dict:
        return lambda value: isinstance(value, dict)
    parts = get_args(type_) if get_origin(type_) is UnionType else (type_,)
    if all(each in _PLAIN for each in parts):
        plain = frozenset[type]().union(*(_PLAIN[each] for each in parts))
        return lambda value: type(value) in plain and (type(value) not in (int, float) or abs(value) <= _LARGEST)
    checks = [_check_of(each) for each in parts]
    return lambda value: any(holds(value) for holds in checks)


_CHECKS = {
    each: {field.name: _check_of(hints[field.name]) for field in fields(each)}
    for each in KINDS.values()
    if (hints := get_type_hints(each))
}


def encode(line: Line, *, seconds: float) -> str:
    """One line of JSON, without its end. `seconds` since the epoch are for people: nothing is decided by
    them."""
    record = {"schema": SCHEMA, "kind": line.kind, "time": round(seconds, 3)}
    record |= durable.without_nan(asdict(line))
    return json.dumps(record, allow_nan=False, separators=(",", ":"))


def decode(text: str) -> Line | None:
    """The line, or None for one that is no report (or of a kind from a later version)."""
    try:
        record: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return from_record(record) if isinstance(record, dict) else None


def from_record(record: Mapping[str, Any]) -> Line | None:
    """The same of a line as JSON has it; None also where a value is not what its field holds."""
    kind = KINDS.get(str(record.get("kind")))
    if kind is None:
        return None
    values = {name: record[name] for name in _CHECKS[kind] if name in record}
    checks = _CHECKS[kind]
    if not all(checks[name](value) for name, value in values.items()):
        return None
    try:
        return kind(**values)
    except TypeError:
        return None


def duration(seconds: float | None) -> str:
    """`3h07m`, `2m05s`, `8s`; `?` where it is not known."""
    if seconds is None:
        return "?"
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 100 * 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def in_words(line: Progress) -> str:
    """The line of the log that people follow: `Step 2000: train loss 6.5123, val loss 6.6512, …`."""
    parts = [f"train loss {_number(line.train_loss)}"]
    if line.val_loss is not None:
        parts.append(f"val loss {_number(line.val_loss)}")
    parts.append(f"lr {line.learning_rate:.3g}")
    parts.append(f"grad norm {_number(line.grad_norm)}")
    parts.append("? tokens/s" if line.tokens_per_s is None else f"{line.tokens_per_s:,.0f} tokens/s")
    parts += [] if line.mfu is None else [f"MFU {line.mfu:.0%}"]
    parts.append(f"{duration(line.eta_s)} left")
    return f"Step {line.step}: " + ", ".join(parts)


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.4f}"
