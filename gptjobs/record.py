"""A job's record in the storage root: the request, a cancel request, attempts, the outcome.

They are there before they are confirmed, so neither losing Redis nor `repair` loses or revives a job.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gptjobs import checkpoint, durable, history
from gptjobs.checkpoint import Attempt, latest_token
from gptjobs.config import Plan
from gptjobs.job import SCHEMA, Job, JobSpec, JobState, Outcome
from gptjobs.layout import Layout


def write_request(layout: Layout, spec: JobSpec) -> None:
    """`job.json`, unless it is there already."""
    if layout.job_file(spec.id).exists():
        return
    layout.job_outputs(spec.id).mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        durable.create(layout.job_file(spec.id), durable.to_json(spec.to_dict()))


def write_cancel_request(layout: Layout, job: str) -> None:
    layout.job_outputs(job).mkdir(parents=True, exist_ok=True)
    durable.write(layout.cancel_file(job), durable.to_json({"schema": SCHEMA}))


def write_outcome(layout: Layout, job: str, outcome: Outcome, token: int) -> None:
    """How the job ended, said by the attempt `token` or after it. The first outcome that counts stands."""
    layout.job_outputs(job).mkdir(parents=True, exist_ok=True)
    if read_outcome(layout, job) is None:
        durable.write(layout.outcome_file(job), durable.to_json({**outcome.to_dict(), "token": token}))


def read_outcome(layout: Layout, job: str) -> Outcome | None:
    """How the job ended. What an attempt wrote that was fenced by a later one does not count."""
    path = layout.outcome_file(job)
    if not path.is_file():
        return None
    found = json.loads(path.read_bytes())
    return Outcome.from_dict(found) if found["token"] >= latest_token(layout, job) else None


def read_plan(layout: Layout, job: str) -> Plan | None:
    """`config.json`, or None before the first attempt."""
    path = layout.config_file(job)
    return Plan.from_dict(json.loads(path.read_bytes())) if path.is_file() else None


@dataclass(frozen=True, kw_only=True)
class PastAttempt:
    """An attempt that began; `ended` is how, where it could still write that down."""

    attempt: Attempt
    ended: Outcome | None
    progress: dict[str, Any]
    """its newest"""


def read_attempts(layout: Layout, job: str) -> list[PastAttempt]:
    """The job's attempts, oldest first."""
    return [_read_attempt(layout, job, each) for each in checkpoint.attempts(layout, job)]


def _read_attempt(layout: Layout, job: str, attempt: Attempt) -> PastAttempt:
    ended: Outcome | None = None
    progress: dict[str, Any] = {}
    for line in history.attempt_lines(layout, job, attempt.token)[0]:
        if line["kind"] == "ended":
            ended = Outcome.from_dict(line)
        elif line["kind"] == "progress":
            progress |= {name: value for name, value in line.items() if value is not None}
    return PastAttempt(attempt=attempt, ended=ended, progress=progress)


def read_job(layout: Layout, job: str) -> Job:
    """The job as the storage root has it: ended, else as its newest attempt left it, else queued."""
    spec = JobSpec.from_dict(json.loads(layout.job_file(job).read_bytes()))
    past = read_attempts(layout, job)
    newest = past[-1] if past else None
    outcome = read_outcome(layout, job) or (newest and newest.ended)
    state = JobState.RUNNING if newest else JobState.QUEUED
    return Job(
        spec=spec,
        state=outcome.state if outcome else state,
        serial=0,
        token=newest.attempt.token if newest else 0,
        beat=0,
        attempt=len(past),
        fruitless=0,
        worker=newest.attempt.worker if newest else None,
        used_device=newest.attempt.device if newest else None,
        reason=outcome.reason if outcome else None,
        progress=newest.progress if newest else {},
    )
