"""The Celery task: claim → prepare → supervise → report."""

import logging
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from celery import Celery
from celery.app.task import Task
from celery.exceptions import Ignore
from celery.utils.functional import maybe_list
from celery.worker.control import Panel

from gptjobs import broker, checkpoint, control, metrics, record, storage
from gptjobs.errors import JobFailed, NotFound, RedisUnreachable, Refused
from gptjobs.job import Job, JobSpec, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.leases import Lease, LeaseStore, Unreachable
from gptjobs.sweep import Sweep
from worker import sweeps
from worker.attempt import Attempt
from worker.host import Host
from worker.lease import HeldLease
from worker.messenger import Messenger
from worker.meter import FENCED, Meters
from worker.news import News, tell_sweep
from worker.slots import Slots
from worker.supervisor import Drain
from worker.tracking import tracked

ROOT_LOOK_S = 1.0

logger = logging.getLogger(__name__)


@dataclass
class Station:
    """What a worker's threads share: its host, its doors, its free slots."""

    host: Host
    layout: Layout
    store: LeaseStore
    app: Celery
    trackers: Sequence[str] = ()
    """that follow its jobs, see gptjobs/trackers.py"""
    drain: Drain = field(default_factory=Drain)
    messenger: Messenger = field(default_factory=Messenger)
    slots: Slots = field(init=False)
    jobs: dict[str, int] = field(default_factory=dict)
    """in work, and how many slots each has"""
    meters: Meters = field(default_factory=Meters)
    hears_redis: bool = True

    def __post_init__(self) -> None:
        self.slots = Slots(self.host.slots)

    @property
    def is_idle(self) -> bool:
        return self.slots.is_idle and not self.drain.is_set()


def register(station: Station) -> None:
    """Give the worker its one task, and its answer to Celery's `revoke`."""

    @station.app.task(bind=True, name=broker.TASK, throws=(JobFailed,))  # type: ignore[untyped-decorator]
    def train(self: Task, job: str, serial: int) -> str:
        with station.slots.taken(_slots_wanted(station, job), station.drain) as device:
            if device is None:
                raise Ignore  # it waits; a worker that stays rings again
            return _answer_doorbell(station, job, serial, device)

    @Panel.register(name="revoke", variadic="task_id")  # type: ignore[untyped-decorator]
    def revoke(state: object, task_id: str | list[str], **options: object) -> dict[str, object]:
        """Cancel jobs; a running one writes a checkpoint first."""
        return _answer_revoke(station, maybe_list(task_id))


def _slots_wanted(station: Station, job: str) -> int:
    try:
        spec = station.store.get(job).spec
    except (Unreachable, NotFound, Refused) as error:
        logger.warning("job %s was not claimed: %s", job, error)
        raise Ignore from error
    if spec.queue not in station.host.queues:
        raise Ignore  # it was rung for where it cannot be taken
    return spec.gpus


def _answer_doorbell(station: Station, job: str, serial: int, device: str) -> str:
    """Train the job if it waits for this very ring; ends as Celery's events want it."""
    worker = station.host.worker
    try:
        _wait_for_root(station)
        found = station.store.get(job)
        lease = station.store.claim(
            job,
            serial,
            floor=checkpoint.latest_token(station.layout, job),
            nonce=secrets.token_hex(8),
            worker=worker,
            device=device,
        )
    except (Unreachable, NotFound, Refused, OSError) as error:
        logger.warning("job %s was not claimed: %s", job, error)
        raise Ignore from error
    if lease is None:
        raise Ignore
    station.jobs[job] = found.spec.gpus
    try:
        outcome = _attempt(station, found, lease, device)
    finally:
        station.jobs.pop(job, None)  # an attempt that was fenced may end after the next one began here
    if found.spec.sweep is not None and outcome.state.is_terminal:
        tell_of(station, sweeps.advance(station.store, station.layout, station.app, found.spec.sweep))
    return _tell_celery(station, lease, outcome)


def _wait_for_root(station: Station) -> None:
    """Return once the storage root is here. Meanwhile this slot takes no other doorbell, and another worker rings
    for the job. Raises Ignore where this one stops first."""
    is_away = False
    while not station.drain.is_set():
        try:
            storage.expect(station.layout, station.store.root(station.layout.id))
        except (OSError, Refused) as error:
            if not is_away:
                logger.warning("no job is taken: %s", error)
            is_away = True
            station.drain.wait(ROOT_LOOK_S)
        else:
            return
    raise Ignore


def _attempt(station: Station, found: Job, lease: Lease, device: str) -> Outcome:
    """Run an attempt under its lease; returns how it ended, once Redis and the root know."""
    job, worker = found.spec.id, station.host.worker
    claimed = replace(
        found, token=lease.token, attempt=lease.attempt, worker=worker, used_device=device, reason=None, cause=None
    )

    def publish(state: JobState, progress: Mapping[str, Any]) -> None:
        broker.tell_progress(station.app, replace(claimed, state=state, progress=progress))

    logger.info("job %s: attempt %d on %s", job, lease.attempt, device)
    with HeldLease(station.store, lease, found.spec, station.layout, worker, device, publish) as held:
        news = news_of(station, found.spec)
        attempt = Attempt(station.layout, found, held, worker, device, station.drain, news)
        with (
            station.meters.of(attempt.meter, claimed, held),
            tracked(station.trackers, station.layout, job, lease.token),
        ):
            verdict = attempt.run()
        state = None if held.lost else held.finish(verdict.outcome, fruitless=verdict.fruitless, draining=station.drain)
    station.meters.count(metrics.ENDED, FENCED if held.lost else _end(verdict.outcome))
    if state is None:
        what = "was fenced; nothing of it counts" if held.lost else "ended, and Redis took no word of it: it expires"
        logger.warning("job %s: this attempt %s", job, what)
        raise Ignore
    outcome = verdict.outcome
    if state is not outcome.state:
        # a request came while the attempt ended for another reason
        outcome = Outcome(state=state, reason=state.value)
        if state.is_terminal:
            with suppress(OSError):  # the request itself is on record
                record.write_outcome(station.layout, job, outcome, lease.token)
    logger.info("job %s: %s", job, outcome)
    tell_end(station, found.spec, news, outcome)
    return outcome


def _end(outcome: Outcome) -> str:
    return str(outcome.cause or outcome.state)


def news_of(station: Station, spec: JobSpec) -> News:
    return News(station.messenger, station.layout, spec, control.addresses_of(station.store, station.layout, spec))


def tell_end(station: Station, spec: JobSpec, news: News, outcome: Outcome) -> None:
    """Of an attempt; at the job's end its addresses are needed no more."""
    news.tell_end(outcome)
    if outcome.state.is_terminal:
        _forget_addresses(station, spec)


def tell_of(station: Station, sweep: Sweep | None) -> None:
    """Of a sweep that has ended."""
    if sweep is not None:
        addresses = control.addresses_of(station.store, station.layout, sweep)
        tell_sweep(station.messenger, station.layout, sweep, addresses)
        _forget_addresses(station, sweep)


def _forget_addresses(station: Station, ended: JobSpec | Sweep) -> None:
    """In Redis a secret lies no longer than it is needed."""
    if ended.notify:
        with suppress(Unreachable):  # then it stays there
            station.store.forget_addresses(ended.id)


def _tell_celery(station: Station, lease: Lease, outcome: Outcome) -> str:
    if outcome.state is JobState.FINISHED:
        return outcome.reason
    if outcome.state in (JobState.FAILED, JobState.DIVERGED):
        raise JobFailed(outcome.reason, hint=outcome.hint)
    broker.tell_end(station.app, station.host.worker, lease.job, lease.token, outcome)
    if outcome.state is JobState.QUEUED:
        ring_again(station, lease.job)
    raise Ignore


def _answer_revoke(station: Station, jobs: list[str]) -> dict[str, object]:
    """Celery would only remember not to start them, and the threads pool cannot end them. All workers hear this."""
    try:
        states = {id: control.cancel(station.store, station.layout, station.store.get(id)).value for id in jobs}
    except (Unreachable, NotFound, Refused) as error:
        logger.warning("jobs %s were not cancelled: %s", ", ".join(jobs), error)
        return {"error": str(error)}
    return {"ok": states}


def ring_again(station: Station, job: str) -> None:
    """Ring for a job that is queued again, unless it is to wait a while: then an idle worker rings."""
    with suppress(Unreachable, RedisUnreachable):  # as it does once Redis answers
        found = station.store.get(job)
        if found.state is JobState.QUEUED and not found.backoff_s:
            broker.ring(station.app, found)
