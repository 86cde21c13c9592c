"""A job as Flower holds it: Celery's task with the fields of a job, filled from events and from Redis's record."""

from collections.abc import Mapping
from typing import Any

from celery import states
from celery.events.state import Task, Worker

from gptjobs import broker
from gptjobs.job import JobState

FACTS = (
    "kind", "device", "stage", "done", "step", "end_step", "tokens", "train_loss", "val_loss", "eval_context",
    "learning_rate", "grad_norm", "tokens_per_s", "eta_s", "attempt", "reason", "submitted_at",
)  # fmt: skip
"""what of `Job.to_dict()` has the same name here"""

_CELERYS = {
    JobState.QUEUED: states.PENDING,
    JobState.RUNNING: states.STARTED,
    JobState.PAUSING: states.STARTED,
    JobState.CANCELLING: states.STARTED,
    JobState.PAUSED: states.RETRY,
    JobState.FINISHED: states.SUCCESS,
    JobState.DIVERGED: states.FAILURE,
    JobState.FAILED: states.FAILURE,
    JobState.CANCELLED: states.REVOKED,
}
_IN_WORK, _WAITING, _ENDED = range(3)
_PHASE_AFTER = {"retried": _WAITING, "succeeded": _ENDED, "failed": _ENDED, "revoked": _ENDED}


class JobTask(Task):  # type: ignore[misc]  # Celery publishes no types
    """Celery makes an event type that it does not know the task's state, which then outranks REVOKED and hides
    the button that terminates. Here progress is STARTED like any work.

    What is told has a place in time: the lease's token, which only grows, then the phase, of which one attempt
    has work, then maybe waiting, then maybe the end. What comes from an earlier place is late, and dropped.
    """

    _fields = (*Task._fields, *FACTS, "job", "job_state", "job_worker", "token", "phase")

    def __init__(self, *arguments: Any, **values: Any) -> None:
        self.__dict__.update(dict.fromkeys((*FACTS, "job", "job_state", "job_worker")), token=0, phase=_IN_WORK)
        super().__init__(*arguments, **values)

    def event(
        self, type_: str, timestamp: float | None = None, local_received: float | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """An event of a worker or a client."""
        told = dict(fields or {})
        token = told.pop("token", self.token)
        if type_ == "progress":
            self.take(told["job"], token)
        elif type_ not in _PHASE_AFTER:
            super().event(type_, timestamp, local_received, told)
        elif self._moves_to(token, _PHASE_AFTER[type_]):
            self.__dict__.update(stage=None, done=None, eta_s=None, job_state=None)
            super().event(type_, timestamp, local_received, told)

    def take(self, job: Mapping[str, Any], token: int) -> None:
        """What a progress event or Redis's record says of the job: a `Job.to_dict()`."""
        state = JobState(job["state"])
        phase = _ENDED if state.is_terminal else _IN_WORK if state.has_trainer else _WAITING
        if not self._moves_to(token, phase):
            return
        label = job["name"] or job["id"]
        self.__dict__.update(
            {each: job[each] for each in FACTS},
            job=label,
            job_state=state.value,
            job_worker=job["worker"],
            state=_CELERYS[state],
            name=broker.TASK,
            args=f"({label!r})",
            worker=Worker(job["worker"]) if job["worker"] else None,  # what Flower searches
            timestamp=self.timestamp or job["submitted_at"],
        )

    def _moves_to(self, token: int, phase: int) -> bool:
        """Whether this place is not before the newest one; then it is the newest."""
        if (token, phase) < (self.token, self.phase):
            return False
        self.__dict__.update(token=token, phase=phase)
        return True

    @property
    def percent(self) -> float:
        """How much of the job, or of a stage before its first step, is done."""
        if self.step is None:
            return 100.0 * (self.done or 0)
        return 100.0 * float(self.step) / float(self.end_step)
