"""The lease in Redis, as workers have it: claimed, renewed, finished, reaped. What each does stands in scripts.py."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gptjobs import scripts
from gptjobs.job import Fruitless, Job, JobState, Outcome
from gptjobs.store import JOB, LEASED, WAITING, Store, encoded

LEASE_TIMEOUT_S = 2.0
LEASE_TTL_S = 10.0
"""A beat that has not grown for so long is a dead holder's."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to train a job, until it is fenced."""

    job: str
    token: int
    nonce: str
    attempt: int


class Fenced(Exception):
    """The lease is another's now."""


class RecordMissing(Exception):
    """Redis has no record of the job: it was flushed, or its volume was lost."""


class Unreachable(Exception):
    """Redis did not answer in time; for callers that go on without it."""


class LeaseStore(Store):
    """For workers: 2 s to answer, no retries, Unreachable where none came: training goes on without."""

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout=LEASE_TIMEOUT_S)

    def _unreachable(self, error: Exception) -> Exception:
        return Unreachable(str(error))

    def claim(self, job: str, serial: int, *, floor: int, nonce: str, worker: str, device: str) -> Lease | None:
        """Queued → running, if the doorbell's serial is the record's. The token exceeds Redis's and `floor`,
        the highest of any attempt in the storage root."""
        answer = self._run(scripts.CLAIM, [JOB + job, WAITING, LEASED], job, serial, floor, nonce, worker, device)
        if answer is None:
            return None
        return Lease(job=job, token=int(answer[0]), nonce=nonce, attempt=int(answer[1]))

    def renew(self, lease: Lease, progress: Mapping[str, Any] | None) -> tuple[JobState, bool]:
        """One beat more. Returns the job's state, in which requests arrive (pausing, cancelling), and whether the
        trainer is to end at once."""
        answer = self._run(scripts.RENEW, [JOB + lease.job], lease.job, lease.token, lease.nonce, encoded(progress))
        state, now = _held(answer)
        return JobState(state), bool(now)

    def finish(
        self, lease: Lease, outcome: Outcome, *, fruitless: Fruitless, progress: Mapping[str, Any] | None
    ) -> JobState:
        """The end of an attempt: a terminal state, paused, or queued again. Returns the state after, in which a
        request that came meanwhile is heeded."""
        answer = self._run(
            scripts.FINISH,
            [JOB + lease.job, WAITING, LEASED],
            lease.job,
            lease.token,
            lease.nonce,
            _way(outcome),
            outcome.reason,
            outcome.cause or "",
            encoded(fruitless),
            encoded(progress),
        )
        return JobState(_held(answer))

    def reap(self, job: Job, outcome: Outcome, fruitless: Fruitless) -> JobState | None:
        """Take a dead holder's lease away, with the outcome of a `finish`; None where its token or beat is not as
        `job` has them."""
        answer = self._run(
            scripts.REAP,
            [JOB + job.spec.id, WAITING, LEASED],
            job.spec.id,
            job.token,
            job.beat,
            _way(outcome),
            outcome.reason,
            outcome.cause or "",
            encoded(fruitless),
        )
        return None if answer is None else JobState(answer)

    def put_back(self, job: Job, lease: Lease, worker: str, device: str) -> bool:
        """After a flush, the record of a job whose holder still trains it; False where there is one."""
        held = replace(job, token=lease.token, attempt=lease.attempt, worker=worker, used_device=device)
        return self.restore(held, nonce=lease.nonce)


def _way(outcome: Outcome) -> str:
    """By which an attempt that ends so leaves its job, see WAYS."""
    return {JobState.QUEUED: "release", JobState.PAUSED: "hold"}.get(outcome.state, outcome.state.value)


def _held(answer: Any) -> Any:
    """The answer of a script for the lease's holder; raises Fenced for anyone else."""
    if answer == "fenced":
        raise Fenced
    if answer == "missing":
        raise RecordMissing
    return answer
