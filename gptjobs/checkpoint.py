"""Checkpoints without torch: manifests, which checkpoints count, verification.

Without a manifest a checkpoint never happened. Which of a job's checkpoints count is a matter of lineage:
those that its latest attempt wrote or descends from. What a fenced or cut-off attempt writes later is on a
dead branch, whatever its step or time; so the file system alone tells the truth.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gptjobs import durable
from gptjobs.config import RESTART, Plan, Settled, known
from gptjobs.errors import NotFound, Refused
from gptjobs.foreign import OWN
from gptjobs.layout import Layout, parse_checkpoint_name

SCHEMA = 1
GOOD = "good"
QUARANTINED = "quarantined"
YOUNG_S = 3600.0
"""A slow network file system may show a manifest before its data, to other hosts, while a checkpoint is this young."""
ARRIVES_WITHIN_S = 30.0
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
_READ_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Losses:
    """In nats a token. `val_loss` was evaluated at step `eval_step` on `eval_tokens` held-out tokens, in
    windows of `eval_context`."""

    train_loss: float | None = None
    val_loss: float | None = None
    eval_step: int | None = None
    eval_context: int | None = None
    eval_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """The place in the data: windows of `block_size` that were trained on, in the order of that block size."""

    block_size: int
    windows: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of a checkpoint; written last, it commits the file."""

    job: str | None
    """that wrote it; None for a checkpoint of another program"""
    token: int
    step: int
    tokens: int
    losses: Losses
    cursor: Cursor
    settled: Settled
    data_name: str
    data_digest: str | None
    """SHA-256 of the source; None where it is not known"""
    parent: str | None
    """the checkpoint before it, relative to the root"""
    size: int
    sha256: str
    versions: Mapping[str, str]
    status: str = GOOD
    reason: str | None = None
    layout: str = OWN
    """how the file's tensors are laid out, see foreign.py"""
    has_moments: bool = True
    """whether the optimizer's state is in the file"""
    arithmetic: str | None = None
    """in words, what the numbers depend on to the bit: device, threads, precision, compilation"""
    written_at: float | None = None
    """seconds since the epoch, for people"""
    sources: Mapping[str, str] = field(default_factory=dict)
    """where the facts about a checkpoint of another program come from"""

    def goes_on_in_order(self, plan: Plan) -> bool:
        """Whether the plan's order of windows is this checkpoint's, so that its place in it holds."""
        same_data = self.data_digest == plan.data_digest
        old, new = self.settled.train, plan.settled.train
        same_order = (old.seed, old.data_order) == (new.seed, new.data_order)
        return same_data and self.cursor.block_size == new.block_size and same_order

    def windows_behind(self, plan: Plan) -> int:
        """Of the plan's order, the windows that were trained on: where the plan goes on from here."""
        is_to_restart = self.job != plan.job and plan.settled.train.data_cursor == RESTART
        return self.cursor.windows if self.goes_on_in_order(plan) and not is_to_restart else 0

    def to_dict(self) -> dict[str, Any]:
        record = {each: getattr(self, each) for each in self.__dataclass_fields__}
        record |= {
            "losses": asdict(self.losses),
            "cursor": asdict(self.cursor),
            "settled": self.settled.to_dict(),
            "versions": dict(self.versions),
            "sources": dict(self.sources),
        }
        return {"schema": SCHEMA, **record}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Manifest":
        values = known(cls.__dataclass_fields__, record)
        values["losses"] = Losses(**known(Losses.__dataclass_fields__, record["losses"]))
        values["cursor"] = Cursor(**known(Cursor.__dataclass_fields__, record["cursor"]))
        values["settled"] = Settled.from_dict(record["settled"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint; `name` is relative to the root. One that `lies_at` another program's file is not
    yet committed: see adoption.py."""

    name: str
    manifest: Manifest
    lies_at: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """As `checkpoints list --json` shows it."""
        manifest = self.manifest
        return {
            "name": self.name,
            "job": manifest.job,
            "step": manifest.step,
            "tokens": manifest.tokens,
            "losses": asdict(manifest.losses),
            "layout": manifest.layout,
            "has_moments": manifest.has_moments,
            "status": manifest.status,
            "reason": manifest.reason,
            "size": manifest.size,
            "sha256": manifest.sha256,
            "parent": manifest.parent,
        }


def manifest_path(checkpoint: Path) -> Path:
    """`a.json` for `a.pt`; with another ending `a.bin.json`, as both may be there."""
    return checkpoint.with_suffix(".json") if checkpoint.suffix == ".pt" else Path(f"{checkpoint}.json")


def read(layout: Layout, name: str) -> Checkpoint:
    """The checkpoint of that name; raises NotFound without a file or manifest, Refused for a torn one."""
    path = layout.path(name)
    if not path.is_file():
        raise NotFound(f"there is no checkpoint {name}", hint="gptjobs checkpoints list")
    try:
        return Checkpoint(name=name, manifest=read_manifest(path))
    except FileNotFoundError:
        raise NotFound(
            f"{name} has no manifest {manifest_path(path).name} beside it, so it was never committed",
            hint="gptjobs checkpoints list shows those that were",
        ) from None


def read_manifest(path: Path) -> Manifest:
    """That beside the file `path`; raises FileNotFoundError without one, Refused for a torn one."""
    try:
        return Manifest.from_dict(json.loads(manifest_path(path).read_bytes()))
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(
            f"{manifest_path(path)} cannot be read as the manifest of {path.name}: {error!r}",
            hint="if another program wrote it, move it away",
        ) from error


def verify(layout: Layout, checkpoint: Checkpoint) -> None:
    """Raise Refused where the file is not, to the bit, what its manifest says."""
    if found := fault(layout, checkpoint):
        raise _corrupt(checkpoint, found)


def fault(
    layout: Layout, checkpoint: Checkpoint, advance: Callable[[int], None] = lambda count: None
) -> str | None:  # fmt: skip
    """In what the file is not what its manifest says; `advance` is told the bytes that were hashed."""
    path = checkpoint.lies_at or layout.path(checkpoint.name)
    size = path.stat().st_size
    if size != checkpoint.manifest.size:
        return f"it has {size} bytes, not {checkpoint.manifest.size}"
    return None if sha256_of(path, advance) == checkpoint.manifest.sha256 else "its SHA-256 is not that of its manifest"


def _lasting_fault(layout: Layout, checkpoint: Checkpoint) -> str | None:
    """Of a young checkpoint, which another host may just have written, once its data had the time to arrive."""
    is_young = time.time() - (checkpoint.manifest.written_at or 0.0) < YOUNG_S
    deadline, pause_s = time.monotonic() + ARRIVES_WITHIN_S * is_young, 0.5
    while (found := fault(layout, checkpoint)) and time.monotonic() < deadline:
        time.sleep(pause_s)
        pause_s *= 1.5
    return found


def quarantine(layout: Layout, checkpoint: Checkpoint, reason: str) -> Checkpoint:
    """Write down that a checkpoint is not to be used, and why."""
    return _marked(layout, checkpoint, QUARANTINED, reason)


def release(layout: Layout, checkpoint: Checkpoint) -> Checkpoint:
    """Take it out of quarantine."""
    return _marked(layout, checkpoint, GOOD, None)


def _marked(layout: Layout, checkpoint: Checkpoint, status: str, reason: str | None) -> Checkpoint:
    changed = replace(checkpoint.manifest, status=status, reason=reason)
    durable.write(manifest_path(layout.path(checkpoint.name)), durable.to_json(changed.to_dict()))
    return replace(checkpoint, manifest=changed)


def _corrupt(checkpoint: Checkpoint, why: str) -> Refused:
    return Refused(
        f"the checkpoint {checkpoint.name} is corrupt: {why}",
        hint=f"an earlier one: gptjobs checkpoints list {checkpoint.manifest.job or ''}".rstrip(),
    )


def sha256_of(path: Path, advance: Callable[[int], None] = lambda count: None) -> str:
    """In hexadecimal; `advance` is told the bytes of each read."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def brought(layout: Layout) -> list[Checkpoint]:
    """The committed checkpoints below checkpoints/ that no job of this root wrote, by name."""
    found = []
    for top in sorted(layout.checkpoints.glob("*")):
        if layout.job_file(top.name).exists():
            continue
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.suffix in SUFFIXES and manifest_path(path).is_file():
                with suppress(Refused):
                    found.append(read(layout, path.relative_to(layout.root).as_posix()))
    return found


def of_job(layout: Layout, job: str) -> list[Checkpoint]:
    """All committed checkpoints of a job, by step, also those on dead branches."""
    found = []
    for path in layout.job_checkpoints(job).glob("*.pt"):
        name = layout.name_of_checkpoint(job, path.name)
        if parse_checkpoint_name(path.name) and manifest_path(path).is_file():
            with suppress(Refused):  # a manifest that cannot be read costs no other checkpoint
                found.append(read(layout, name))
    return sorted(found, key=lambda each: (each.manifest.step, each.manifest.token))


def listed(layout: Layout, job: str) -> list[Checkpoint]:
    """The job's checkpoints that count, and those in quarantine, by step."""
    count = {each.name for each in counting(layout, job)}
    return [each for each in of_job(layout, job) if each.name in count or each.manifest.status != GOOD]


def counting(layout: Layout, job: str) -> list[Checkpoint]:
    """The job's good checkpoints that count, by step."""
    until = dict(lineage(layout, job))
    return [
        each
        for each in of_job(layout, job)
        if each.manifest.token in until
        and each.manifest.step <= until[each.manifest.token]
        and each.manifest.status == GOOD
    ]


def best(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """That of the lowest validation loss; None where none was evaluated."""
    evaluated = [each for each in checkpoints if each.manifest.losses.val_loss is not None]
    return min(evaluated, key=lambda each: each.manifest.losses.val_loss or 0.0, default=None)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One trainer of a job: who started, and from which checkpoint."""

    token: int
    start: str | None
    """relative to the root; None from scratch"""
    start_step: int
    start_token: int | None
    """of the attempt that wrote `start`; None where that was not an attempt of this job"""
    worker: str
    device: str
    began_at: float
    """seconds since the epoch, for people"""
    micro_batch: int | None = None
    """windows on the device at once, where as many as planned did not fit on one of its kind before"""
    skips: tuple[tuple[int, ...], ...] = ()
    """places in the order of windows that are left out, each from the first to before the last: a spike saw them"""

    @property
    def kind_of_device(self) -> str:
        return self.device.partition(":")[0]


def begin_attempt(
    layout: Layout, job: str, token: int, start: Checkpoint | None, *, worker: str, device: str,
    micro_batch: int | None = None, skips: Sequence[Sequence[int]] = (),
) -> Attempt:  # fmt: skip
    """Write down that an attempt begins; raises FileExistsError where its token was used already."""
    made = Attempt(
        token=token,
        start=start.name if start else None,
        start_step=start.manifest.step if start else 0,
        start_token=start.manifest.token if start and start.manifest.job == job else None,
        worker=worker,
        device=device,
        began_at=time.time(),
        micro_batch=micro_batch,
        skips=tuple(map(tuple, skips)),
    )
    durable.make_folder(layout.job_outputs(job))
    durable.make_folder(layout.attempts(job))
    durable.create(layout.attempt_file(job, token), durable.to_json({"schema": SCHEMA, **asdict(made)}))
    return made


def read_attempt(layout: Layout, job: str, token: int) -> Attempt:
    """Raises Refused for a file that cannot be read."""
    path = layout.attempt_file(job, token)
    try:
        values = known(Attempt.__dataclass_fields__, json.loads(path.read_bytes()))
        return Attempt(**{**values, "skips": tuple(map(tuple, values.get("skips", ())))})
    except (ValueError, TypeError) as error:
        raise Refused(f"the attempt {path} cannot be read: {error}") from error


def attempts(layout: Layout, job: str) -> list[Attempt]:
    """The job's attempts, by token."""
    return [read_attempt(layout, job, token) for token in sorted(tokens_of_attempts(layout, job))]


def latest_token(layout: Layout, job: str) -> int:
    """The highest token of any attempt; 0 before the first."""
    return max(tokens_of_attempts(layout, job), default=0)


def tokens_of_attempts(layout: Layout, job: str) -> list[int]:
    """In no order. File servers leave files of their own, such as `._1.json`: those are no attempts."""
    names = [path.stem for path in layout.attempts(job).glob("*.json")]
    return [int(name) for name in names if name.isascii() and name.isdigit()]


def lineage(layout: Layout, job: str, newest: int | None = None) -> list[tuple[int, float]]:
    """The attempts that the newest one, or the one of this token, descends from, oldest first: (token, the step up to
    which it counts; infinity for the newest)."""
    chain: list[tuple[int, float]] = []
    token, until = newest or latest_token(layout, job) or None, math.inf
    while token is not None:
        chain.append((token, until))
        attempt = read_attempt(layout, job, token)
        token, until = attempt.start_token, attempt.start_step
    return chain[::-1]


_VERIFIED: set[tuple[Path, str, int]] = set()
"""parents that this process found whole, as they still stand there: many trials start from one"""


def start_of_next_attempt(
    layout: Layout, job: str, parent: str | None, tell: Callable[[Checkpoint], None] = lambda checkpoint: None
) -> Checkpoint | None:
    """The newest checkpoint of the job that counts and is whole, else the one it was to start from, else
    None: from scratch. Those that are corrupt are quarantined, and told. Raises Refused where that parent is."""
    for each in reversed(counting(layout, job)):
        found = _lasting_fault(layout, each)
        if found is None:
            return each
        tell(quarantine(layout, each, f"corrupt: {found}"))
    if parent is None:
        return None
    first = read(layout, parent)
    mark = layout.path(parent), first.manifest.sha256, layout.path(parent).stat().st_mtime_ns
    if mark not in _VERIFIED:
        if found := _lasting_fault(layout, first):
            raise _corrupt(first, found)
        _VERIFIED.add(mark)
    return first


def sweep_leftovers(layout: Layout, job: str) -> None:
    """Remove what torn writes left in the job's folders: temporary files, checkpoints without a manifest. Clients
    write to its outputs too, and live."""
    durable.sweep(layout.job_checkpoints(job), older_than_s=0.0)
    durable.sweep(layout.attempts(job), older_than_s=0.0)
    durable.sweep(layout.job_outputs(job))
    for file in (layout.metrics_file(job), layout.events_file(job)):  # which attempts alone write
        durable.sweep(file.parent, older_than_s=0.0, of=f"{file.name}.*")
    for path in layout.job_checkpoints(job).glob("*.pt"):
        if not manifest_path(path).exists():
            path.unlink(missing_ok=True)
