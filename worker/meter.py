"""What a worker counts, and keeps of its attempts while they train, for its metrics."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from gptjobs import metrics
from gptjobs.config import Plan
from gptjobs.job import Cause, Job, JobState
from gptjobs.metrics import JobReading, LastCheckpoint, Metric
from gptjobs.progress import Alert, CheckpointWritten, Line, Progress, StageBegan
from gptjobs.record import PastAttempt
from worker.lease import HeldLease

FENCED = "fenced"
ENDS = (*(each.value for each in Cause), *(each.value for each in JobState if each.is_terminal), FENCED)
"""in which attempts end"""

Counted = dict[tuple[Metric, str], float]
"""by metric and label"""


class Counts:
    """They only grow, and any thread may add to them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted: Counted = {}

    def add(self, metric: Metric, label: str = "", by: float = 1) -> None:
        with self._lock:
            self._counted[metric, label] = self._counted.get((metric, label), 0) + by

    def all(self) -> Counted:
        with self._lock:
            return dict(self._counted)


class JobMeter:
    """Of one attempt. The supervisor's thread and the onlooker's write it, scrapes read it."""

    def __init__(self) -> None:
        self.counts = Counts()
        # what earlier attempts had is not known yet: a counter that began at nought would seem to grow
        self._alerts: Counter[str] = Counter()
        self._restarts: Counter[str] = Counter()
        self._progressed_at = self._written_at = time.monotonic()
        self._written_step: int | None = None
        self._stall_s: float | None = None
        self._interval: int | None = None

    def begin(self, plan: Plan, start_step: int, before: Sequence[PastAttempt]) -> None:
        """Take what the attempt begins with: the step, and the attempts before it."""
        self._interval = plan.settled.train.checkpoint_interval
        self._alerts, self._restarts = metrics.alerts_of(before), metrics.restarts_of(before)
        self._written_step, self._written_at = start_step, time.monotonic()

    def note(self, line: Line) -> None:
        if isinstance(line, Progress | StageBegan):
            self._progressed_at = time.monotonic()
        elif isinstance(line, Alert):
            label = metrics.alert_label(line.name)
            self._alerts[label] += 1
            self.counts.add(metrics.WORKER_ALERTS, label)
        elif isinstance(line, CheckpointWritten):
            self._written_step, self._written_at, self._stall_s = line.step, time.monotonic(), line.stall_s
            self.counts.add(metrics.CHECKPOINTS)
            self.counts.add(metrics.STALLS, by=line.stall_s or 0)

    def reading(self, job: Job, held: HeldLease) -> JobReading:
        now = time.monotonic()
        step, age_s = self._written_step, now - self._written_at
        return JobReading(
            job=replace(job, state=held.state, progress=held.progress),
            alerts=dict(self._alerts),
            restarts=self._restarts,
            lease_age_s=held.age_s,
            progress_age_s=now - self._progressed_at,
            checkpoint=None if step is None else LastCheckpoint(step=step, age_s=age_s, stall_s=self._stall_s),
            checkpoint_interval=self._interval,
        )


class Meters:
    """Those of a worker's attempts, and what it counted since it began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = Counts()
        self._live: dict[JobMeter, tuple[Job, HeldLease]] = {}
        for metric in (metrics.BEGUN, metrics.CHECKPOINTS, metrics.STALLS, metrics.REAPED):
            self.count(metric, by=0)
        for end in ENDS:
            self.count(metrics.ENDED, end, by=0)
        for alert in metrics.ALERTS:
            self.count(metrics.WORKER_ALERTS, alert, by=0)

    def count(self, metric: Metric, label: str = "", by: float = 1) -> None:
        self._counts.add(metric, label, by)

    @contextmanager
    def of(self, meter: JobMeter, job: Job, held: HeldLease) -> Iterator[None]:
        """While an attempt lasts, show its meter; what it counted stays counted."""
        self.count(metrics.BEGUN)
        self._live[meter] = job, held
        try:
            yield
        finally:
            with self._lock:
                del self._live[meter]
                for (metric, label), count in meter.counts.all().items():
                    self.count(metric, label, count)

    def readings(self) -> list[JobReading]:
        """Of a job that was fenced here and began anew, the newer attempt's."""
        live = {job.spec.id: (meter, job, held) for meter, (job, held) in list(self._live.items())}
        return [meter.reading(job, held) for meter, job, held in live.values()]

    def counted(self) -> Counted:
        """By all attempts, also those that go on."""
        with self._lock:
            found = self._counts.all()
            for meter in list(self._live):
                for each, count in meter.counts.all().items():
                    found[each] = found.get(each, 0) + count
            return found
