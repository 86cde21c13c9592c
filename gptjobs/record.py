"""A job's record in the storage root: the request, a cancel request, the outcome.

They are there before they are confirmed, so neither losing Redis nor `repair` loses or revives a job.
"""

import json
from contextlib import suppress

from gptjobs import durable
from gptjobs.checkpoint import latest_token
from gptjobs.config import Plan
from gptjobs.job import SCHEMA, JobSpec, Outcome
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
