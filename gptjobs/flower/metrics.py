"""Flower's metrics of jobs and workers, for Prometheus, beside those that Flower has of Celery's events.

A look gathers them in a thread; a scrape then only writes them out. However many jobs are on record, only those that
are trained, or were a moment ago, have series of their own.
"""

import time
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Lock
from typing import Any

from prometheus_client.registry import Collector

from gptjobs import metrics, record
from gptjobs.errors import GptjobsError
from gptjobs.flower.board import Board, Row
from gptjobs.job import ANY, DEVICES, Job, JobState, is_time
from gptjobs.layout import Layout
from gptjobs.metrics import Family, JobReading, LastCheckpoint, Samples
from gptjobs.presence import Presence
from gptjobs.record import PastAttempt
from gptjobs.store import Store

_FURTHER = ("stage", "done", "step")
"""values of a job's progress that change when its trainer comes further"""
SHOWN_ON_S = 120.0
"""that a job without a trainer keeps its series, so that a scrape gets its last values"""


class FlowerMetrics(Collector):
    def __init__(self, store: Store, layout: Layout, board: Board) -> None:
        self._store, self._layout, self._board = store, layout, board
        self._lock = Lock()
        self._beats, self._steps = Watch(), Watch()
        self._intervals: dict[str, int | None] = {}
        self._trained: set[str] = set()
        self._families: list[Family] = []

    def describe(self) -> Iterator[Family]:
        return iter(())

    def collect(self) -> Iterator[Family]:
        """As the newest look found it."""
        return iter(self._families)

    def look(self, workers: Collection[str]) -> None:
        """In a thread. `workers` are the names that Flower has heard of. While a look is held up, say by a storage root
        that hangs, what the one before it found stands: none waits for another, so that one thread is lost at most."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._look(workers)
        finally:
            self._lock.release()

    def _look(self, workers: Collection[str]) -> None:
        jobs = self._board.look().jobs()
        samples = Samples()
        samples.add(metrics.REDIS_UP, self._board.trouble is None)
        _add_queues(samples, jobs, self._present(workers))
        self._trained = {job.spec.id for job, row in jobs if self._is_trained(job, row)}
        for job, row in jobs:
            if job.spec.id in self._trained:
                metrics.add_job(samples, self._reading(job, row["is_live"]))
            elif job.attempt and time.time() - row["seen_at"] < SHOWN_ON_S:
                metrics.add_job(samples, self._last_reading(job))
        self._beats.keep(self._trained)
        self._steps.keep(self._trained)
        self._intervals = {id: steps for id, steps in self._intervals.items() if id in self._trained}
        self._families = list(samples)

    def _present(self, workers: Collection[str]) -> list[Presence] | None:
        """The workers that are there; None where Redis does not say."""
        if self._board.trouble is None:
            with suppress(GptjobsError):
                return self._store.workers_among(workers)
        return None

    def _is_trained(self, job: Job, row: Row) -> bool:
        """Where Redis is away, those that it had with a trainer before, until the storage root says that they ended."""
        is_known = self._board.trouble is not None and job.spec.id in self._trained
        return job.state.has_trainer and (row["is_live"] or is_known)

    def _reading(self, job: Job, is_live: bool) -> JobReading:
        id, past = job.spec.id, self._board.attempts(job.spec.id)
        return replace(
            self._last_reading(job),
            lease_age_s=self._beats.age_s(id, (job.token, job.beat)) if is_live else None,
            progress_age_s=self._steps.age_s(id, (job.token, *(job.progress.get(each) for each in _FURTHER))),
            checkpoint=_last_checkpoint(past[-1], time.time()) if past else None,
            checkpoint_interval=self._interval(id),
        )

    def _last_reading(self, job: Job) -> JobReading:
        past = self._board.attempts(job.spec.id)
        return JobReading(job=job, alerts=metrics.alerts_of(past), restarts=metrics.restarts_of(past[:-1]))

    def _interval(self, id: str) -> int | None:
        if self._intervals.get(id) is None:
            plan = None
            with suppress(OSError, ValueError, KeyError, TypeError, GptjobsError):  # torn: asked again
                plan = record.read_plan(self._layout, id)
            self._intervals[id] = plan.settled.train.checkpoint_interval if plan else None
        return self._intervals[id]


class Watch:
    """For how long what is told of each job has been the same, by this process's own clock."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Hashable, float]] = {}

    def age_s(self, job: str, mark: Hashable) -> float:
        now = time.monotonic()
        was = self._seen.get(job)
        if was is None or was[0] != mark:
            self._seen[job] = was = mark, now
        return now - was[1]

    def keep(self, jobs: Collection[str]) -> None:
        self._seen = {job: seen for job, seen in self._seen.items() if job in jobs}


def _last_checkpoint(newest: PastAttempt, now: float) -> LastCheckpoint:
    """Its age is by the clocks of two hosts: files have no other."""
    line = newest.checkpoint
    if line is None:
        return LastCheckpoint(
            step=newest.attempt.start_step, age_s=max(0.0, now - newest.attempt.began_at), stall_s=None
        )
    written_at: Any = line.get("time")
    age_s = max(0.0, now - written_at) if is_time(written_at) else 0.0
    return LastCheckpoint(step=line["step"], age_s=age_s, stall_s=line.get("stall_s"))


def _add_queues(samples: Samples, jobs: Sequence[tuple[Job, Row]], present: Sequence[Presence] | None) -> None:
    """How many jobs are in each state and queue, also where there are none, and who takes them."""
    counts = Counter((job.state, job.spec.queue) for job, _ in jobs)
    queues = sorted({ANY, *DEVICES, *(queue for _, queue in counts)})
    for queue in queues:
        for state in JobState:
            samples.add(metrics.JOBS, counts[state, queue], state.value, queue)
    if present is None:
        return
    for queue in queues:
        samples.add(metrics.QUEUE_WORKERS, sum(queue in each.queues for each in present), queue)
    for device in DEVICES:
        own = [each for each in present if device in each.queues]
        samples.add(metrics.WORKERS, len(own), device)
        samples.add(metrics.SLOTS, sum(len(each.slots) for each in own), device)
        samples.add(metrics.SLOTS_BUSY, sum(each.busy for each in own), device)
