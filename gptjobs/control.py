"""What users ask of the queue and its jobs: the one way in for the command line, workers and Flower.

A request is in the storage root before Redis has it, where the root is here: losing Redis neither loses a job nor
revives one.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from gptjobs import __version__, broker, checkpoint, record
from gptjobs.broker import App
from gptjobs.config import OF_TRIAL, TRAIN_FIELDS, Given, Plan
from gptjobs.errors import NotFound, RedisRefused, RedisUnreachable, Refused
from gptjobs.job import Job, JobSpec, JobState, Outcome, new_job
from gptjobs.layout import Layout, new_job_id
from gptjobs.leases import Unreachable
from gptjobs.store import Store
from gptjobs.sweep import Sweep

_DONE = {"cancel": "cancelled", "pause": "paused", "unpause": "unpaused"}


def submit(store: Store, layout: Layout, app: App, spec: JobSpec, addresses: Sequence[str] = ()) -> bool:
    """Queue a job, whose end is told at these addresses; False where it was submitted before, with the same id. Raises
    Refused where another request has this id."""
    is_first, job = True, new_job(spec)
    if layout.is_there:
        is_first = record.write_spec(layout, spec, addresses)
        job = record.read_job(layout, spec.id)
        _refuse_another(job.spec, spec)
    try:
        is_added = not job.state.has_trainer and restore(store, layout, app, job, addresses)
    except RedisRefused:
        if is_first:
            record.forget(layout, spec.id)
        raise
    except RedisUnreachable as error:
        raise RedisUnreachable(
            f"{error.message}; job {spec.id} may be queued or not",
            hint=f"gptjobs show {spec.id}, or gptjobs repair, once Redis answers" if layout.is_there else error.hint,
        ) from error
    if not (is_added or layout.is_there):
        _refuse_another(store.get(spec.id).spec, spec)
    return is_added and is_first


def _refuse_another(there: JobSpec, spec: JobSpec) -> None:
    if _asked_for(there) != _asked_for(spec):
        raise Refused(
            f"job {spec.id} was submitted with this idempotency key, and asks for something else",
            hint=f"gptjobs show {spec.id}; another --idempotency-key for another job",
        )


def _asked_for(spec: JobSpec) -> tuple[object, ...]:
    """What tells a request from another one: not when it was made, by which version, or from which checkpoint of a
    job, as JOB@last moves on."""
    parent = spec.parent and spec.parent.rpartition("@" if "@" in spec.parent else "/")[0]
    return spec.kind, spec.name, dict(spec.overrides), parent, spec.device, spec.priority


def restore(store: Store, layout: Layout, app: App, job: Job, addresses: Sequence[str] = ()) -> bool:
    """Put a job into Redis as it is on record, and ring if it waits; False where Redis has it."""
    if job.state is JobState.CANCELLED:
        _end_cancelled(layout, job.spec.id)
    if urls := addresses or record.read_addresses(layout, job.spec.id):
        store.keep_addresses(job.spec.id, urls)
    is_added = store.restore(job)
    if is_added:
        with suppress(RedisUnreachable):  # an idle worker rings, once it answers
            ring(store, app, job.spec.id)
    return is_added


def ring(store: Store, app: App, job: str) -> None:
    """Ring for a job that waits, with the serial that its record now has."""
    found = store.get(job)
    if found.state is JobState.QUEUED:
        broker.ring(app, found)


def retry(layout: Layout, job: Job, *, from_scratch: bool = False) -> JobSpec:
    """A new request for the rest of a job that ended: from its last good checkpoint, as it was; without one, or
    `from_scratch`, the same request again. Raises Refused for a job that goes on, or made all its steps."""
    if not job.state.is_terminal:
        raise Refused(f"job {job.spec.called} is {job.state}: it has not ended", hint=f"gptjobs explain {job.spec.id}")
    again = replace(
        job.spec, id=new_job_id(), submitted_at=time.time(), version=__version__,
        sweep=None, trial=None, to_the_end=False,
    )  # fmt: skip
    if from_scratch:
        return again
    if not layout.is_there:
        raise NotFound("its checkpoints lie in the storage root, which is not here", hint="--root, or --from-scratch")
    plan, last = record.read_plan(layout, job.spec.id), checkpoint.start_of_next_attempt(layout, job.spec.id, None)
    if plan is None or last is None:
        return again
    left = plan.settled.end_step - last.manifest.step
    if left < 1 or job.state is JobState.FINISHED:
        raise Refused(
            f"job {job.spec.called} {job.state} at step {last.manifest.step}",
            hint=f"gptjobs submit resume --from {job.spec.id}@last --steps 1000, or gptjobs retry --from-scratch",
        )
    overrides = {"steps": Given(left, "retry"), **of_one_job(plan)}
    return replace(again, kind="resume", parent=last.name, overrides=overrides)


def addresses_of(store: Store, layout: Layout, spec: JobSpec | Sweep) -> tuple[str, ...]:
    """Where the end of a job or a sweep is told; none where these are not for this user's eyes."""
    if not spec.notify:
        return ()
    if found := record.read_addresses(layout, spec.id):
        return found
    with suppress(RedisUnreachable, Unreachable):
        return store.addresses(spec.id)
    return ()


def of_one_job(plan: Plan) -> dict[str, Given]:
    """What a resume would not inherit, and the rest of the same job needs."""
    train, origins = plan.settled.train, plan.settled.origins
    found = {name: Given(getattr(train, name), origins[name]) for name in ("gpus", "shard")}
    found = {name: given for name, given in found.items() if given.value != TRAIN_FIELDS[name].default}
    return found | {name: Given(getattr(train, name), OF_TRIAL) for name in origins if origins[name] == OF_TRIAL}


def cancel(store: Store, layout: Layout, job: Job, *, now: bool = False) -> JobState:
    """Stop a job, a running one after a checkpoint unless `now`; returns its state after. Terminal ones stay as
    they are."""
    state = _ask(store, layout, job, "cancel", now=now)
    if state is JobState.CANCELLED and layout.is_there:
        _end_cancelled(layout, job.spec.id)
    return state


def pause(store: Store, layout: Layout, job: Job) -> JobState:
    """Have a job wait until it is unpaused; a running one writes a checkpoint and frees its device first."""
    return _ask(store, layout, job, "pause")


def unpause(store: Store, layout: Layout, app: App | None, job: Job) -> JobState:
    """Let a paused job go on, on any fitting device. Without an `app` to ring by, an idle worker rings within a TTL."""
    if layout.is_there:
        record.take_back(layout, job.spec.id, "pause")
    state = store.ask("unpause", job.spec.id, "")
    if state is JobState.QUEUED and app is not None:
        ring(store, app, job.spec.id)
    return state


def prioritize(store: Store, layout: Layout, app: App, job: Job, priority: int) -> None:
    """Give a job another priority; a waiting one moves in the queue."""
    if layout.is_there:
        record.ask(layout, job.spec.id, "priority", priority)
    if store.prioritize(job.spec.id, priority) is JobState.QUEUED:
        ring(store, app, job.spec.id)


def _ask(store: Store, layout: Layout, job: Job, request: str, *, now: bool = False) -> JobState:
    id, done = job.spec.id, _DONE[request]
    if job.state.is_terminal:
        return job.state
    if layout.is_there:
        ended = record.read_outcome(layout, id)
        if ended is not None:  # its attempt died before Redis heard of it; whoever takes the job tells
            return ended.state
        record.ask(layout, id, request, done)
    try:
        return store.ask(request, id, done, now=now)
    except RedisUnreachable as error:
        if not layout.is_there:
            raise
        raise RedisUnreachable(
            f"{error.message}; the request is on record and heeded when the job is next taken", hint=error.hint
        ) from error
    except NotFound:
        if not layout.is_there:
            raise
        return record.read_job(layout, id).state  # Redis was flushed: whoever puts the job back heeds the record


def _end_cancelled(layout: Layout, job: str) -> None:
    outcome = Outcome(state=JobState.CANCELLED, reason=_DONE["cancel"])
    record.write_outcome(layout, job, outcome, checkpoint.latest_token(layout, job))
