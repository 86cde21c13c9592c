"""The job: one immutable request, and the record of how it goes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, cast

from gptjobs import __version__
from gptjobs.config import HYPERPARAMETERS, MOST_GPUS, PRESET, Given, Overrides, known
from gptjobs.errors import Refused
from gptjobs.layout import is_digest, is_name

SCHEMA = 1

ANY = "any"
DEVICES = ("cuda", "mps", "cpu")
KINDS = ("train", "resume")
HIGHEST_PRIORITY = 9
DEFAULT_PRIORITY = 5
_OVERRIDES = {*HYPERPARAMETERS, PRESET}
FRUITLESS_LIMIT = 5
"""attempts in a row without a new checkpoint that one cause in the trainer ended, after which a job has failed"""
BACKOFF_S = 10
"""the wait after the second loss in a row without a new checkpoint; each further one doubles it"""
LONGEST_BACKOFF_S = 300
MOST_ADDRESSES = 16
"""where the end of one job is told"""


def queue_of(device: str, gpus: int) -> str:
    """The queue of the jobs that want so many devices of this kind at once."""
    return device if gpus == 1 else f"{device}.{gpus}"


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    FINISHED = "finished"
    DIVERGED = "diverged"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL

    @property
    def has_trainer(self) -> bool:
        return self in LEASED


def plain(text: str) -> str:
    """Without control characters: what others wrote must not drive a terminal."""
    return text if text.isprintable() else "".join(each for each in text if each.isprintable())


def whole(text: str) -> int:
    """A count from elsewhere; raises ValueError for one that no counting reaches, and that Redis could not add to."""
    number = int(text)
    if not 0 <= number <= _LARGEST:
        raise ValueError(f"{number:.3g} is no count")
    return number


def is_time(value: object) -> bool:
    """Whether `value` is seconds since the epoch, up to the year 9999."""
    return type(value) in (int, float) and 0 <= cast(float, value) < _END_OF_TIME


_LARGEST = 2**53
"""up to which a double, which is what Lua has, counts"""
_END_OF_TIME = 253_402_300_800
_TEXT_LENGTH = 4096
"""characters of a request's field, at most"""

_NEWEST: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("step", "end_step", "tokens", "eval_context"), int),
    **dict.fromkeys(
        ("train_loss", "val_loss", "learning_rate", "grad_norm", "tokens_per_s", "eta_s", "done"), (int, float)
    ),
    **dict.fromkeys(("stage", "checkpoint"), str),
}


def newest_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of a job's progress on record, what has a known name and its type; a step only with the end it goes to."""
    found: dict[str, Any] = {
        name: plain(value) if isinstance(value, str) else value
        for name, value in record.items()
        if name in _NEWEST and isinstance(value, _NEWEST[name]) and _is_shown(value)
    }
    if not {"step", "end_step", "tokens"} <= found.keys() or found["end_step"] < 1:
        found.pop("step", None)
    return found


def _is_shown(value: Any) -> bool:
    """Whether it can be shown: no NaN, no number of a thousand digits, no endless text."""
    if isinstance(value, str):
        return len(value) <= _TEXT_LENGTH
    return not isinstance(value, bool) and abs(value) <= _LARGEST


TERMINAL = frozenset({JobState.FINISHED, JobState.DIVERGED, JobState.FAILED, JobState.CANCELLED})
LEASED = frozenset({JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING})

WAYS: Mapping[str, Mapping[JobState, JobState]] = {
    "claim": {JobState.QUEUED: JobState.RUNNING},
    "pause": {JobState.QUEUED: JobState.PAUSED, JobState.RUNNING: JobState.PAUSING},
    "unpause": {JobState.PAUSED: JobState.QUEUED, JobState.PAUSING: JobState.RUNNING},
    "cancel": {
        JobState.QUEUED: JobState.CANCELLED,
        JobState.PAUSED: JobState.CANCELLED,
        JobState.RUNNING: JobState.CANCELLING,
        JobState.PAUSING: JobState.CANCELLING,
    },
    "release": {
        JobState.RUNNING: JobState.QUEUED,
        JobState.PAUSING: JobState.PAUSED,
        JobState.CANCELLING: JobState.CANCELLED,
    },
    "hold": {
        JobState.RUNNING: JobState.PAUSED,
        JobState.PAUSING: JobState.PAUSED,
        JobState.CANCELLING: JobState.CANCELLED,
    },
    **{
        end.value: dict.fromkeys((JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING), end)
        for end in (JobState.FINISHED, JobState.DIVERGED, JobState.FAILED, JobState.CANCELLED)
    },
}
"""Every way from a state to another; from a terminal one there is none. A worker claims; users pause, unpause and
cancel; an attempt's end releases its job (drained, crashed, its lease reaped), holds it (no space) or ends it."""


class Cause(StrEnum):
    """Why an attempt ended before its job did."""

    OUT_OF_MEMORY = "out of memory"
    ERROR = "error"
    SIGNAL = "signal"
    EXIT_CODE = "exit code"
    HUNG = "hung"
    SPIKE = "spike"
    """of the loss, from before which the next attempt goes on"""
    GROWTH = "memory growth"
    """of the trainer's memory, without end: it was stopped, with a checkpoint"""
    LOST_HOST = "lost host"
    KILLED = "killed"
    """from outside"""
    STORAGE = "storage"
    NO_SPACE = "no space"
    STOPPED = "stopped"
    """with a checkpoint: drained, paused, cancelled"""
    REFUSED = "refused"

    @property
    def backs_off(self) -> bool:
        """Whether it lies outside the trainer: trying again helps, but not at once."""
        return self in (Cause.LOST_HOST, Cause.KILLED, Cause.STORAGE)

    @property
    def counts(self) -> bool:
        """Whether it lies in the trainer, which is likely to meet it again."""
        own = (Cause.OUT_OF_MEMORY, Cause.ERROR, Cause.SIGNAL, Cause.EXIT_CODE, Cause.HUNG, Cause.GROWTH)
        return self in own


Fruitless = Mapping[Cause, int]
"""attempts since the last new checkpoint, by what ended them"""


def count_fruitless(before: Fruitless, cause: Cause, *, wrote_checkpoint: bool) -> Fruitless:
    """With one more attempt, which `cause` ended. A new checkpoint makes all before it forgotten."""
    if wrote_checkpoint:
        return {}
    return {**before, cause: before.get(cause, 0) + 1} if cause.backs_off or cause.counts else before


def backoff_s(cause: Cause | None, fruitless: Fruitless) -> int:
    """How long a job waits before idle workers ring for it again; 0 after a first loss."""
    losses = sum(count for each, count in fruitless.items() if each.backs_off)
    if cause is None or not cause.backs_off or losses < 2:
        return 0
    return min(LONGEST_BACKOFF_S, BACKOFF_S << (losses - 2))


def against_again(cause: Cause | None, fruitless: Fruitless) -> str | None:
    """In words, what stands against trying a job again at once, or for ever, after `cause` ended an attempt."""
    if cause is None or cause not in fruitless:
        return None
    count, wait_s = fruitless[cause], backoff_s(cause, fruitless)
    times = f"{count} {'attempt' if count == 1 else 'attempts'} without a new checkpoint ended so ({cause})"
    if cause.counts:
        return times if count >= FRUITLESS_LIMIT else f"{times}; after {FRUITLESS_LIMIT} it fails"
    return f"{times}; an idle worker takes it after it saw it wait for {wait_s} s" if wait_s else None


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What was asked for. `overrides` holds only what the user typed or a sweep sampled."""

    id: str
    kind: str
    """train or resume"""
    name: str | None = None
    overrides: Mapping[str, Given] = field(default_factory=dict)
    parent: str | None = None
    """the checkpoint to start from: relative to the root, or JOB@… where the client had no root"""
    data_digest: str | None = None
    """SHA-256 of the source, where the client had it"""
    accept_data_change: bool = False
    allow_quarantined: bool = False
    """whether the parent may be one that is not to be used"""
    device: str = ANY
    priority: int = DEFAULT_PRIORITY
    sweep: str | None = None
    """that chose its overrides"""
    trial: int | None = None
    """its number in the sweep"""
    to_the_end: bool = False
    """whether no pruner stops it: a user had the trial go on"""
    notify: tuple[str, ...] = ()
    """where its end, spikes and plateau are told, masked: the addresses themselves are secrets, see notify.py"""
    submitted_at: float
    """seconds since the epoch, for people"""
    version: str = field(default=__version__, compare=False)
    """of the gptjobs that submitted it"""
    unknown: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """fields of a later version, kept as they are"""

    @property
    def called(self) -> str:
        """What people call the job."""
        return self.name or self.id

    @property
    def gpus(self) -> int:
        """Slots of one worker that it takes. What no client asks is taken for one: settle() refuses it, in words."""
        given = self.overrides.get("gpus")
        value = given.value if given else 1
        return value if type(value) is int and 1 <= value <= MOST_GPUS else 1

    @property
    def queue(self) -> str:
        """Where its doorbell is heard: by the workers that have such devices, and as many."""
        return queue_of(self.device, self.gpus)

    @property
    def wants(self) -> str:
        """What it asks a worker for, in words."""
        kind = "" if self.device == ANY else f"{self.device} "
        return self.device if self.gpus == 1 else f"{self.gpus} {kind}devices at once"

    @property
    def worker_command(self) -> str:
        """What starts a worker that can take it, where such devices are."""
        words = "gptjobs worker start" if self.device == ANY else f"gptjobs worker start --device {self.device}"
        return words if self.gpus == 1 or self.device == "cuda" else f"{words} --slots {self.gpus}"

    def to_dict(self) -> dict[str, Any]:
        record = asdict(self)
        record |= {"overrides": overrides_to_record(self.overrides), "notify": list(self.notify)}
        return {"schema": SCHEMA, **record.pop("unknown"), **record}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "JobSpec":
        """Raises Refused for what no client of this version asks: whoever reaches Redis can write a record."""
        if record["schema"] > SCHEMA:
            raise Refused(
                f"job {plain(str(record['id']))} was submitted by gptjobs {plain(str(record.get('version')))}; "
                f"{__version__} here cannot read it",
                hint="update gptjobs on this host",
            )
        for name in (record["id"], record.get("name")):
            if name is not None and not (isinstance(name, str) and is_name(name)):
                raise Refused(f"{plain(repr(name)):.80} is no name of a job")
        values = known(cls.__dataclass_fields__, record)
        if values.get("device", ANY) not in (ANY, *DEVICES):
            raise Refused(f"there is no device {plain(repr(values['device'])):.80}")
        values["overrides"] = overrides_from_record(record["overrides"])
        if values.get("parent") is not None:
            values["parent"] = plain(values["parent"])
        values["notify"] = masked_from_record(record)
        values["version"] = plain(str(record.get("version", "")))
        values["unknown"] = {name: each for name, each in record.items() if name not in {*values, "schema"}}
        return _checked(cls(**values))


def _checked(spec: JobSpec) -> JobSpec:
    """The request; raises Refused where a field is not what a client of this version writes there. Whether the values
    of hyperparameters go is for the one who plans the job: settle() says it in words."""
    is_right = {
        "id": isinstance(spec.id, str),
        "kind": spec.kind in KINDS,
        "overrides": all(is_override(name, given.value) for name, given in spec.overrides.items()),
        "parent": spec.parent is None or len(spec.parent) <= _TEXT_LENGTH,
        "data_digest": spec.data_digest is None or is_digest(spec.data_digest),
        "accept_data_change": isinstance(spec.accept_data_change, bool),
        "allow_quarantined": isinstance(spec.allow_quarantined, bool),
        "priority": type(spec.priority) is int and 0 <= spec.priority <= HIGHEST_PRIORITY,
        "sweep": spec.sweep is None or (isinstance(spec.sweep, str) and is_name(spec.sweep)),
        "to_the_end": isinstance(spec.to_the_end, bool),
        "trial": spec.trial is None or (type(spec.trial) is int and spec.trial >= 0),
        "submitted_at": is_time(spec.submitted_at),
    }
    wrong = ", ".join(name for name, right in is_right.items() if not right)
    if wrong:
        raise Refused(f"job {spec.id} asks for what gptjobs here does not know: {wrong}")
    return spec


def masked_from_record(record: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{plain(str(each)):.300}" for each in list(record.get("notify", ()))[:MOST_ADDRESSES])


def overrides_to_record(overrides: Overrides) -> dict[str, Any]:
    return {name: {"value": given.value, "origin": given.origin} for name, given in overrides.items()}


def overrides_from_record(record: Mapping[str, Any]) -> dict[str, Given]:
    return {name: Given(given["value"], plain(given["origin"])) for name, given in record.items()}


def is_override(name: str, value: object) -> bool:
    """Whether a request may have it; whether it goes is for settle() to say, in words."""
    if isinstance(value, str):
        return name in _OVERRIDES and len(value) <= _TEXT_LENGTH
    return name in _OVERRIDES and isinstance(value, int | float) and abs(value) <= _LARGEST


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended, a terminal state and why; or how an attempt did, after which its job is queued or paused."""

    state: JobState
    reason: str
    """finished, target, patience, pruned, cancelled, or the cause in words"""
    hint: str | None = None
    cause: Cause | None = None

    def __str__(self) -> str:
        return self.state.value if self.reason == self.state.value else f"{self.state}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        record = {"schema": SCHEMA, "state": self.state.value, "reason": self.reason, "hint": self.hint}
        return {**record, "cause": self.cause and self.cause.value}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Outcome":
        hint, cause = record.get("hint"), record.get("cause")
        return cls(
            state=JobState(record["state"]),
            reason=plain(record["reason"]),
            hint=plain(hint) if hint else None,
            cause=Cause(cause) if cause in set(Cause) else None,
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request with its live record, as Redis has it."""

    spec: JobSpec
    state: JobState
    serial: int
    """of the doorbell that counts"""
    token: int
    beat: int
    attempt: int
    fruitless: Fruitless
    priority: int
    """that counts: the request's, or what it was changed to"""
    worker: str | None
    used_device: str | None
    reason: str | None
    cause: Cause | None
    """of the newest attempt's end, while the job goes on"""
    is_unpaused: bool = False
    """since it was paused; the storage root may not know, as clients without it unpause too"""
    progress: Mapping[str, Any]
    """the newest values of the trainer's lines, with `stage`"""

    @property
    def backoff_s(self) -> int:
        return backoff_s(self.cause, self.fruitless)

    @property
    def why(self) -> str | None:
        """The reason, where it says more than the state."""
        return None if self.reason == self.state.value else self.reason

    def to_dict(self) -> dict[str, Any]:
        """As `list --json` shows it."""
        newest = self.progress
        return {
            "id": self.spec.id,
            "name": self.spec.name,
            "kind": self.spec.kind,
            "sweep": self.spec.sweep,
            "trial": self.spec.trial,
            "state": self.state.value,
            "outcome": self.reason if self.state.is_terminal else None,
            "device": self.used_device or self.spec.device,
            "priority": self.priority,
            "stage": newest.get("stage") if self.state.has_trainer else None,
            "done": newest.get("done") if self.state.has_trainer else None,
            "step": newest.get("step"),
            "end_step": newest.get("end_step"),
            "tokens": newest.get("tokens"),
            "train_loss": newest.get("train_loss"),
            "val_loss": newest.get("val_loss"),
            "eval_context": newest.get("eval_context"),
            "learning_rate": newest.get("learning_rate"),
            "grad_norm": newest.get("grad_norm"),
            "tokens_per_s": newest.get("tokens_per_s"),
            "eta_s": newest.get("eta_s") if self.state.has_trainer else None,
            "attempt": self.attempt,
            "worker": self.worker,
            "reason": self.reason,
            "cause": self.cause.value if self.cause else None,
            "fruitless": {cause.value: count for cause, count in self.fruitless.items()},
            "submitted_at": self.spec.submitted_at,
        }


def new_job(spec: JobSpec) -> Job:
    """A job that was just submitted."""
    return Job(
        spec=spec,
        state=JobState.QUEUED,
        serial=1,
        token=0,
        beat=0,
        attempt=0,
        fruitless={},
        priority=spec.priority,
        worker=None,
        used_device=None,
        reason=None,
        cause=None,
        progress={},
    )
