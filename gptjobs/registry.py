"""The checkpoints there are: where each comes from, which are to be trusted, which are to be kept."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from gptjobs import checkpoint, record, trials
from gptjobs.checkpoint import GOOD, QUARANTINED, Checkpoint
from gptjobs.errors import NotFound, Refused, UsageError
from gptjobs.layout import Layout
from gptjobs.reference import find_checkpoint, jobs_on_record, pick

BY_HAND = "by hand"
"""the reason of a quarantine that was told none"""


def ancestry(layout: Layout, found: Checkpoint) -> list[Checkpoint]:
    """The checkpoint and those it comes from, newest first, as far as they are still there."""
    chain, seen = [found], {found.name}
    while (parent := chain[-1].manifest.parent) is not None and parent not in seen:
        try:
            # of one that was pruned, the manifest is still there
            chain.append(Checkpoint(name=parent, manifest=checkpoint.read_manifest(layout.path(parent))))
        except (FileNotFoundError, Refused):
            break
        seen.add(parent)
    return chain


def taint(layout: Layout, found: Checkpoint) -> Checkpoint | None:
    """The quarantined checkpoint that this one descends from, or None."""
    return next((each for each in ancestry(layout, found)[1:] if each.manifest.status != GOOD), None)


def meant(layout: Layout, reference: str, folder: Path | None = None) -> list[Checkpoint]:
    """Those that a reference means: one, or with JOB@FROM.. and JOB@FROM..TO all of the job from a step on, or to
    another one, also those on dead branches. Raises NotFound where there is none."""
    job, at, which = reference.rpartition("@")
    first, dots, last = which.partition("..")
    if not (at and dots and first.isdigit() and (last.isdigit() or not last)):
        return [find_checkpoint(layout, reference, folder)]
    id = pick(job or "@", jobs_on_record(layout))
    until = int(last) if last else math.inf
    found = [each for each in checkpoint.of_job(layout, id) if int(first) <= each.manifest.step <= until]
    if not found:
        raise NotFound(f"job {id} has no checkpoint at the steps {which}", hint=f"gptjobs checkpoints list {id}")
    return found


def quarantine(layout: Layout, found: Iterable[Checkpoint], reason: str) -> list[Checkpoint]:
    """Those that were not in quarantine before, now in it."""
    return [
        checkpoint.quarantine(layout, each, reason) for each in found if each.manifest.status != QUARANTINED
    ]  # fmt: skip


def release(layout: Layout, found: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Those that were in quarantine, good again. Raises Refused for one whose file is not whole."""
    released = []
    for each in found:
        if each.manifest.status == QUARANTINED:
            checkpoint.verify(layout, each)
            released.append(checkpoint.release(layout, each))
    return released


def superfluous(
    layout: Layout, job: str, *, keep_best: int, keep_last: int, keep_every: int, used: set[str]
) -> list[Checkpoint]:
    """Of a job's checkpoints those that are neither among the best nor the last, nor at every so many steps; never one
    that is `used`, and never the only good one. Those in quarantine and on dead branches count for none of it."""
    good = checkpoint.counting(layout, job)
    evaluated = sorted(
        (each for each in good if each.manifest.losses.val_loss is not None),
        key=lambda each: each.manifest.losses.val_loss or 0.0,
    )
    kept = {each.name for each in (*evaluated[:keep_best], *(good[-keep_last:] if keep_last else ()))}
    kept |= {each.name for each in good if keep_every and each.manifest.step % keep_every == 0}
    if not kept & {each.name for each in good}:
        kept |= {each.name for each in good[-1:]}
    return [each for each in checkpoint.of_job(layout, job) if each.name not in kept | used]


def in_use(layout: Layout, waiting: Iterable[str | None] = ()) -> set[str]:
    """The names of checkpoints that jobs and sweeps which have not ended start from: those on record, and what those
    start from that wait in Redis alone."""
    found = {*waiting}
    for sweep in trials.sweeps(layout):
        if not layout.summary_file(sweep.id).exists():
            pruned = [each.job for each in trials.read(layout, sweep.id) if each.is_pruned]
            found |= {sweep.parent, *(name for job in pruned for name in _last(layout, job))}
    for job in jobs_on_record(layout):
        if record.read_outcome(layout, job.id) is None:
            plan = record.read_plan(layout, job.id)
            found |= {plan.parent if plan else record.read_spec(layout, job.id).parent, *_last(layout, job.id)}
    return {_resolved(layout, each) for each in found if each is not None}


def _last(layout: Layout, job: str) -> list[str]:
    """What the next attempt of a job starts from."""
    return [each.name for each in checkpoint.counting(layout, job)[-1:]]


def _resolved(layout: Layout, reference: str) -> str:
    """The name of a checkpoint that a client without the root named otherwise."""
    try:
        return find_checkpoint(layout, reference).name if "@" in reference else reference
    except (NotFound, UsageError):
        return reference


def remove(layout: Layout, found: Sequence[Checkpoint]) -> None:
    """Delete the files of checkpoints. Their manifests stay: they are the lineage of what came after."""
    for each in found:
        layout.path(each.name).unlink(missing_ok=True)
