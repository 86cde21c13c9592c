"""Rescue: requeue jobs whose lease expired, ring again for those whose doorbell was lost, announce the worker.

No clocks are compared. A beat that does not grow for a TTL of this worker's own monotonic time is a dead
holder's; after any pause or lost connection of its own, a worker starts to watch anew.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType

import gptjobs
from gptjobs import broker, checkpoint, metrics, record
from gptjobs.errors import RedisUnreachable
from gptjobs.job import SCHEMA, Cause, Job, JobState, Outcome, count_fruitless
from gptjobs.leases import LEASE_TTL_S, Unreachable
from gptjobs.presence import Device, Presence
from worker import conditions, sweeps
from worker.host import versions
from worker.tasks import Station, news_of, ring_again, tell_end, tell_of

LOOK_S = 1.0
SWEEPS_LOOK_S = 2.0
DEVICES_LOOK_S = 15.0
OWN_PAUSE_S = 4.0
"""a gap between two looks that is this long was a pause of this worker's own"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """Since when a job's mark has been the same."""

    mark: tuple[int, ...]
    since: float


class Watch:
    """Tells what has not changed for a TTL."""

    def __init__(self) -> None:
        self._seen: dict[str, Seen] = {}

    def forget(self) -> None:
        self._seen.clear()

    def stale(
        self, marks: Mapping[str, tuple[int, ...]], now: float, waits: Mapping[str, float] = MappingProxyType({})
    ) -> list[str]:
        """The ids whose mark is what it was a TTL ago, or so long as each `waits`; their watch starts anew."""
        self._seen = {
            job: seen if (seen := self._seen.get(job)) and seen.mark == mark else Seen(mark, now)
            for job, mark in marks.items()
        }
        found = [job for job, seen in self._seen.items() if now - seen.since >= max(LEASE_TTL_S, waits.get(job, 0.0))]
        for job in found:
            del self._seen[job]
        return found


class Rescue:
    """A thread of every worker."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._beats, self._doorbells = Watch(), Watch()
        self._began = time.time()
        self._versions = versions()
        self._devices: list[Device] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rescue", daemon=True)

    def start(self) -> None:
        self._thread.start()
        threading.Thread(target=self._see_to_sweeps, name="sweeps", daemon=True).start()
        threading.Thread(target=self._see_devices, name="devices", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        with suppress(Unreachable):  # its presence expires by itself
            self._station.store.withdraw(self._station.host.worker)

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._stopped.wait(LOOK_S):
            now = time.monotonic()
            if now - looked > OWN_PAUSE_S:
                self._forget()
            looked = now
            try:
                self._look(now)
                self._station.hears_redis = True
            except (Unreachable, RedisUnreachable) as error:
                logger.debug("Redis does not answer: %s", error)
                self._station.hears_redis = False
                self._forget()

    def _forget(self) -> None:
        self._beats.forget()
        self._doorbells.forget()

    def _look(self, now: float) -> None:
        station = self._station
        station.store.announce(self._presence())
        self._heed(station.store.asked_of_worker(station.host.worker))
        station.store.root(station.layout.id)  # after a flush, nobody else may say it
        leased = {job.spec.id: job for job in station.store.leased()}
        beats = {id: (job.token, job.beat) for id, job in leased.items()}
        for id in self._beats.stale(beats, now):
            self._reap(leased[id])
        # while others keep all busy, a job that backed off has no other to ring for it
        waits = [job for job in station.store.waiting() if station.is_idle or job.backoff_s]
        waiting = {job.spec.id: job for job in waits}
        serials = {id: (job.serial,) for id, job in waiting.items() if job.spec.queue in station.host.queues}
        backoffs = {id: float(job.backoff_s) for id, job in waiting.items()}
        for id in self._doorbells.stale(serials, now, backoffs):
            logger.info("job %s waits and no doorbell came: ringing again", id)
            broker.ring(station.app, waiting[id])

    def _see_to_sweeps(self) -> None:
        """A worker with a free slot sees what is next: also of a sweep that was just submitted, and of one whose trial
        ended with its host. In a thread of its own, as many trials take their time to read."""
        station = self._station
        while not self._stopped.wait(SWEEPS_LOOK_S):
            with suppress(Unreachable, RedisUnreachable):
                for sweep in station.store.sweeps() if station.is_idle else ():
                    tell_of(station, sweeps.see_to(station.store, station.layout, station.app, sweep))

    def _see_devices(self) -> None:
        """In a thread of its own, as nvidia-smi may take seconds, and hang with its driver."""
        while True:
            self._devices = conditions.devices(self._station.host.slots)
            if self._stopped.wait(DEVICES_LOOK_S):
                return

    def _heed(self, asked: str | None) -> None:
        """What a user asked of this worker comes as the signals that say the same."""
        if asked is None:
            return
        logger.info("asked to %s", asked)
        if asked == "stop":
            self._station.drain.at_once.set()
        elif self._station.drain.is_set():
            return  # as a second signal it would mean more
        os.kill(os.getpid(), signal.SIGTERM)

    def _reap(self, job: Job) -> None:
        station, id = self._station, job.spec.id
        lost = Outcome(state=JobState.QUEUED, reason=f"lost {job.worker}", cause=Cause.LOST_HOST)
        outcome = None
        with suppress(OSError):  # where the root does not work, the job is queued again
            outcome = record.read_outcome(station.layout, id)  # of a holder that died before Redis heard of it
        outcome = outcome or lost
        fruitless = count_fruitless(job.fruitless, Cause.LOST_HOST, wrote_checkpoint="checkpoint" in job.progress)
        after = station.store.reap(job, outcome, fruitless)
        if after is None:
            return
        logger.warning("job %s: %s, its lease expired: %s", id, lost.reason, after)
        station.meters.count(metrics.REAPED)
        if after is not outcome.state:
            outcome = Outcome(state=after, reason=after.value)
        if after.is_terminal:
            with suppress(OSError):  # where the root does not work, Redis alone knows
                record.write_outcome(station.layout, id, outcome, checkpoint.latest_token(station.layout, id))
        tell_end(station, job.spec, news_of(station, job.spec), outcome)
        broker.tell_end(station.app, job.worker or "", id, job.token, outcome)
        if after is JobState.QUEUED:
            ring_again(station, id)

    def _presence(self) -> Presence:
        host = self._station.host
        jobs = dict(self._station.jobs)
        memory, memory_free = conditions.host_memory()
        return Presence(
            name=host.worker,
            host=host.worker.partition("@")[2],
            version=gptjobs.__version__,
            schema=SCHEMA,
            queues=host.queues,
            slots=list(host.slots),
            busy=sum(jobs.values()),
            jobs=sorted(jobs),
            started_at=self._began,
            devices=self._devices,
            versions=self._versions,
            memory=memory,
            memory_free=memory_free,
        )
