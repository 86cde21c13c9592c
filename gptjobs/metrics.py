"""The metrics for Prometheus, each named once: what it means, its labels, who exposes it.

What is told of a job has the same name and labels from Flower and from the job's worker, so a query that takes
`max by (job_id, name)` finds it once, whichever of the two is scraped. What only one of them knows only it exposes. The
label is `job_id`, as Prometheus itself calls what it scrapes `job`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from gptjobs.job import Cause, Job
from gptjobs.progress import CHECKPOINT_FAILED, FALL, MEMORY_GROWTH, NOT_FINITE, OUTLIER, PLATEAU, SLOWDOWN, SPIKE
from gptjobs.record import PastAttempt

Family = GaugeMetricFamily | CounterMetricFamily

FLOWER, WORKER = "Flower", "worker"
ALERTS = (SPIKE, FALL, OUTLIER, NOT_FINITE, PLATEAU, SLOWDOWN, MEMORY_GROWTH, CHECKPOINT_FAILED)
OTHER = "other"
"""an alert that this version does not know: what a label can be is bounded"""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A gauge, or a counter where its name ends in _total."""

    name: str
    help: str
    labels: tuple[str, ...]
    sources: tuple[str, ...]

    def family(self) -> Family:
        kind = CounterMetricFamily if self.name.endswith("_total") else GaugeMetricFamily
        return kind(self.name, self.help, labels=self.labels)


def _of_job(name: str, help: str, *labels: str) -> Metric:
    return Metric(name=f"gptjobs_job_{name}", help=help, labels=("job_id", "name", *labels), sources=(FLOWER, WORKER))


def _of_flower(name: str, help: str, *labels: str) -> Metric:
    return Metric(name=f"gptjobs_{name}", help=help, labels=labels, sources=(FLOWER,))


def _of_worker(name: str, help: str, *labels: str) -> Metric:
    return Metric(name=f"gptjobs_worker_{name}", help=help, labels=("worker", *labels), sources=(WORKER,))


JOB_INFO = _of_job("info", "1 for each job that is trained.", "kind", "state", "device", "worker")
JOB_ATTEMPT = _of_job("attempt", "Number of the job's newest attempt.")
VALUES = {
    "step": _of_job("step", "Updates that were made."),
    "end_step": _of_job("end_step", "Updates that there are when the job has finished."),
    "tokens": _of_job("tokens", "Tokens that were trained on."),
    "train_loss": _of_job("train_loss", "Mean training loss since the line of progress before, in nats a token."),
    "val_loss": _of_job("val_loss", "Validation loss of the newest evaluation, in nats a token."),
    "learning_rate": _of_job("learning_rate", "Learning rate of the newest step."),
    "grad_norm": _of_job("gradient_norm", "Norm of the newest gradient, before it is clipped."),
    "tokens_per_s": _of_job("tokens_per_second", "Speed since the line of progress before."),
    "eta_s": _of_job("remaining_seconds", "Time until the last step, at the newest speed."),
}
"""of the newest values of a job's progress, by their names there"""
LEASE_AGE = _of_job("lease_age_seconds", "Time since the lease's beat was last seen to grow.")
PROGRESS_AGE = _of_job("progress_age_seconds", "Time since the trainer last came further: a step, or a stage before.")
CHECKPOINT_AGE = _of_job(
    "checkpoint_age_seconds", "Time since the newest checkpoint; before an attempt's first, since the attempt began."
)
CHECKPOINT_STEP = _of_job("checkpoint_step", "Step of the newest checkpoint, or that which the attempt started at.")
CHECKPOINT_INTERVAL = _of_job("checkpoint_interval_steps", "Steps from one checkpoint to the next, as asked for.")
CHECKPOINT_STALL = _of_job("checkpoint_stall_seconds", "Time for which the newest checkpoint kept the loop waiting.")
JOB_ALERTS = _of_job("alerts_total", "Alerts of all the job's attempts.", "alert")
JOB_RESTARTS = _of_job("restarts_total", "Attempts after the first, by what ended the one before.", "cause")

JOBS = _of_flower("jobs", "Jobs on record or in Redis.", "state", "queue")
QUEUE_WORKERS = _of_flower("queue_workers", "Workers that take jobs from the queue.", "queue")
WORKERS = _of_flower("workers", "Workers that are there.", "device")
SLOTS = _of_flower("slots", "Slots of all workers.", "device")
SLOTS_BUSY = _of_flower("slots_busy", "Slots in which jobs are trained.", "device")
REDIS_UP = _of_flower("redis_up", "1 if Redis answers Flower.")

WORKER_INFO = _of_worker("info", "1 for each worker.", "version", "device")
WORKER_SLOTS = _of_worker("slots", "Slots of the worker.")
WORKER_BUSY = _of_worker("slots_busy", "Slots in which jobs are trained.")
WORKER_DRAINING = _of_worker("draining", "1 if the worker takes no more jobs and ends.")
WORKER_REDIS_UP = _of_worker("redis_up", "1 if Redis answers the worker.")
ROOT_FREE = _of_worker("root_free_bytes", "Space that is left in the storage root.")
BEGUN = _of_worker("attempts_begun_total", "Attempts that the worker began.")
ENDED = _of_worker("attempts_ended_total", "Attempts that ended, by cause, or else the job's state then.", "end")
WORKER_ALERTS = _of_worker("alerts_total", "Alerts of the worker's attempts.", "alert")
CHECKPOINTS = _of_worker("checkpoints_total", "Checkpoints that were committed.")
STALLS = _of_worker("checkpoint_stall_seconds_total", "Time for which checkpoints kept training waiting.")
REAPED = _of_worker("leases_reaped_total", "Leases that the worker took away from other workers, lost ones.")

METRICS: tuple[Metric, ...] = (
    JOB_INFO, JOB_ATTEMPT, *VALUES.values(), LEASE_AGE, PROGRESS_AGE, CHECKPOINT_AGE, CHECKPOINT_STEP,
    CHECKPOINT_INTERVAL, CHECKPOINT_STALL, JOB_ALERTS, JOB_RESTARTS,
    JOBS, QUEUE_WORKERS, WORKERS, SLOTS, SLOTS_BUSY, REDIS_UP,
    WORKER_INFO, WORKER_SLOTS, WORKER_BUSY, WORKER_DRAINING, WORKER_REDIS_UP, ROOT_FREE, BEGUN, ENDED, WORKER_ALERTS,
    CHECKPOINTS, STALLS, REAPED,
)  # fmt: skip


class Samples:
    """What one scrape finds."""

    def __init__(self) -> None:
        self._families: dict[Metric, Family] = {}

    def add(self, metric: Metric, value: float | None, *labels: str) -> None:
        """None for what is not known: such a series is not there."""
        if value is not None:
            if metric not in self._families:
                self._families[metric] = metric.family()
            self._families[metric].add_metric(labels, value)

    def __iter__(self) -> Iterator[Family]:
        return iter(self._families.values())


@dataclass(frozen=True, kw_only=True)
class LastCheckpoint:
    """The newest that a job has; before an attempt's first, what the attempt started from."""

    step: int
    age_s: float
    stall_s: float | None


@dataclass(frozen=True, kw_only=True)
class JobReading:
    """A job as one scrape finds it, with its newest progress. Without a trainer nothing of it can grow old."""

    job: Job
    alerts: Mapping[str, int]
    restarts: Mapping[str, int]
    lease_age_s: float | None = None
    progress_age_s: float | None = None
    checkpoint: LastCheckpoint | None = None
    checkpoint_interval: int | None = None


def add_job(samples: Samples, reading: JobReading) -> None:
    job, checkpoint = reading.job, reading.checkpoint
    of = job.spec.id, job.spec.called
    samples.add(JOB_INFO, 1, *of, job.spec.kind, job.state.value, job.used_device or "", job.worker or "")
    samples.add(JOB_ATTEMPT, job.attempt, *of)
    for name, metric in VALUES.items():
        samples.add(metric, job.progress.get(name), *of)
    samples.add(LEASE_AGE, reading.lease_age_s, *of)
    samples.add(PROGRESS_AGE, reading.progress_age_s, *of)
    samples.add(CHECKPOINT_INTERVAL, reading.checkpoint_interval, *of)
    if checkpoint is not None:
        samples.add(CHECKPOINT_AGE, checkpoint.age_s, *of)
        samples.add(CHECKPOINT_STEP, checkpoint.step, *of)
        samples.add(CHECKPOINT_STALL, checkpoint.stall_s, *of)
    for alert, count in reading.alerts.items():
        samples.add(JOB_ALERTS, count, *of, alert)
    for cause, count in reading.restarts.items():
        samples.add(JOB_RESTARTS, count, *of, cause)


def alert_label(name: str) -> str:
    return name if name in ALERTS else OTHER


def alerts_of(past: Sequence[PastAttempt]) -> Counter[str]:
    """Of each name, also of those that did not happen: Prometheus sees a counter grow only from what it has seen."""
    found = Counter(dict.fromkeys(ALERTS, 0))
    found.update(alert_label(alert["name"]) for each in past for alert in each.alerts)
    return found


def restarts_of(before: Sequence[PastAttempt]) -> Counter[str]:
    """By the causes of the attempts before the newest. One that could not write down its end lost its host."""
    found = Counter({Cause.LOST_HOST.value: 0})  # an alert looks at it
    ends = [each.ended for each in before]
    found.update(str(end.cause or end.state) if end else Cause.LOST_HOST.value for end in ends)
    return found
