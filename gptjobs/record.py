"""A job's record in the storage root: the job, what was asked of it since, attempts, the outcome.

They are there before they are confirmed, so neither losing Redis nor `repair` loses or revives a job.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gptjobs import checkpoint, durable, history
from gptjobs.checkpoint import Attempt, Checkpoint, latest_token
from gptjobs.config import Plan, halved
from gptjobs.errors import Refused
from gptjobs.job import SCHEMA, WAYS, Cause, Job, JobSpec, JobState, Outcome, new_job
from gptjobs.layout import Layout
from gptjobs.plateau import STANDS
from gptjobs.progress import CHECKPOINT_FAILED, FALL, NOT_FINITE, OUTLIER, PLATEAU, SLOWDOWN, SPIKE
from gptjobs.slowdown import SLOW_PART

OWNER_ONLY = 0o600
OUTLIER_STANDS_STEPS = 100
"""that the alert of an outlier is still shown"""


def write_spec(layout: Layout, spec: JobSpec, addresses: Sequence[str] = ()) -> bool:
    """`job.json`, and before it where its end is told; False where it is there already."""
    if layout.job_file(spec.id).exists():
        return False
    write_addresses(layout, spec.id, addresses)
    try:
        durable.create(layout.job_file(spec.id), durable.to_json(spec.to_dict()))
    except FileExistsError:
        return False
    return True


def write_addresses(layout: Layout, id: str, addresses: Sequence[str]) -> None:
    """Where the end of a job or a sweep is told, for the eyes of who writes it alone; in its folder, which is made."""
    durable.make_folder(layout.job_outputs(id))
    if addresses:
        content = durable.to_json({"schema": SCHEMA, "notify": list(addresses)})
        durable.write(layout.addresses_file(id), content, mode=OWNER_ONLY)


def read_addresses(layout: Layout, id: str) -> tuple[str, ...]:
    """None where there are none, or where they are for another user's eyes."""
    try:
        return tuple(json.loads(layout.addresses_file(id).read_bytes())["notify"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def forget(layout: Layout, job: str) -> None:
    """Take back a `job.json` that was just written, of a job that nobody took."""
    layout.job_file(job).unlink()
    layout.addresses_file(job).unlink(missing_ok=True)
    layout.job_outputs(job).rmdir()


def read_spec(layout: Layout, job: str) -> JobSpec:
    """Raises Refused for one that this version cannot read."""
    path = layout.job_file(job)
    try:
        return JobSpec.from_dict(json.loads(path.read_bytes()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{path} cannot be read: {error!r}") from error


def ask(layout: Layout, job: str, request: str, value: Any = True) -> None:
    """Write down that a user asks for it: cancel, pause (with a reason) or priority."""
    durable.make_folder(layout.job_outputs(job))
    durable.write(layout.request_file(job, request), durable.to_json({"schema": SCHEMA, request: value}))


def asked(layout: Layout, job: str, request: str) -> Any:
    """What a user asked for, or None."""
    try:
        return json.loads(layout.request_file(job, request).read_bytes()).get(request, True)
    except FileNotFoundError:
        return None


def with_requests(layout: Layout, job: str, state: JobState) -> JobState:
    """The state that a job has from `state` on by what users asked for."""
    for request in ("cancel", "pause"):
        if asked(layout, job, request) is not None:
            return WAYS[request].get(state, state)
    return state


def take_back(layout: Layout, job: str, request: str) -> None:
    layout.request_file(job, request).unlink(missing_ok=True)


def write_outcome(layout: Layout, job: str, outcome: Outcome, token: int) -> Outcome:
    """How the job ended, said by the attempt `token` or after it. The first outcome that counts stands, and is
    returned."""
    durable.make_folder(layout.job_outputs(job))
    path, content = layout.outcome_file(job), durable.to_json({**outcome.to_dict(), "token": token})
    try:
        durable.create(path, content)  # not over what came while a mount hung here: it may be a later attempt's
    except FileExistsError:
        if stands := read_outcome(layout, job):
            return stands
        durable.write(path, content)
    return outcome


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
    micro_batch: int | None = None
    """windows on the device at once, where fewer than planned"""
    alerts: Sequence[dict[str, Any]] = ()
    """its lines of that kind, oldest first"""
    checkpoint: dict[str, Any] | None = None
    """the line of the newest that it wrote"""


def read_attempts(layout: Layout, job: str) -> list[PastAttempt]:
    """The job's attempts, oldest first."""
    return [read_on(layout, job, _begun(each))[0] for each in checkpoint.attempts(layout, job)]


def _begun(attempt: Attempt) -> PastAttempt:
    return PastAttempt(attempt=attempt, ended=None, progress={}, micro_batch=attempt.micro_batch)


def read_attempt(layout: Layout, job: str, token: int) -> tuple[PastAttempt, int]:
    """The attempt, and the byte of its lines up to which they were read."""
    return read_on(layout, job, _begun(checkpoint.read_attempt(layout, job, token)))


def read_on(layout: Layout, job: str, past: PastAttempt, start: int = 0) -> tuple[PastAttempt, int]:
    """The attempt with what its lines tell from the byte `start` on, and the byte after them."""
    ended, micro_batch = past.ended, past.micro_batch
    progress, alerts, newest = dict(past.progress), list(past.alerts), past.checkpoint
    lines, end = history.attempt_lines(layout, job, past.attempt.token, start)
    for line in lines:
        if line["kind"] == "ended":
            ended = Outcome.from_dict(line)
        elif line["kind"] == "progress":
            progress |= {name: value for name, value in line.items() if value is not None}
        elif line["kind"] == "micro_batch":
            micro_batch = line["windows"]
        elif line["kind"] == "alert":
            alerts.append(line)
        elif line["kind"] == "checkpoint":
            newest = line
    found = PastAttempt(
        attempt=past.attempt, ended=ended, progress=progress, micro_batch=micro_batch, alerts=alerts, checkpoint=newest
    )
    return found, end


def micro_batch(past: Sequence[PastAttempt], device: str, planned: int) -> int | None:
    """With how many windows at once the next attempt on such a device begins; None for as many as planned.

    What an earlier attempt came down to there is kept. Where one still ended out of memory (the kernel killed it, or
    the optimizer's moments did not fit), half of what it had.
    """
    windows = None
    for each in past:
        if each.attempt.kind_of_device == device.partition(":")[0]:
            windows = each.micro_batch or windows
            if each.ended is not None and each.ended.cause is Cause.OUT_OF_MEMORY:
                windows = halved(windows or planned)
    return windows


def windows_of_spikes(past: Sequence[PastAttempt]) -> list[list[int]]:
    """The windows that are left out after attempts that a spike has ended, each from the first to before the last."""
    ended = [each for each in past if each.ended is not None and each.ended.cause is Cause.SPIKE]
    alerts = [[alert for alert in each.alerts if alert["name"] in (SPIKE, FALL)] for each in ended]
    return [list(each[-1]["windows"]) for each in alerts if each and each[-1].get("windows")]


def fewer_windows(newest: PastAttempt | None, plan: Plan | None) -> str | None:
    """In words, that an attempt has fewer windows on the device at once than planned."""
    if newest is None or newest.micro_batch is None or plan is None:
        return None
    planned = plan.settled.train.windows_at_once
    return f"{newest.micro_batch} of {planned} windows are on the device at once: more ran out of memory"


def standing_alert(newest: PastAttempt | None, checkpoints: Sequence[Checkpoint]) -> str | None:
    """In words, the newest of an attempt's alerts that still holds, if one does."""
    alerts = newest.alerts if newest is not None else ()
    standing = [each for each in alerts if newest is not None and not _is_over(each, newest, checkpoints)]
    return f"Alert at step {standing[-1]['step']}: {standing[-1]['reason']}" if standing else None


def _is_over(alert: dict[str, Any], newest: PastAttempt, checkpoints: Sequence[Checkpoint]) -> bool:
    """Of a checkpoint, once a later one was written; of a slowdown, once the newest line is as fast as usual; of a
    plateau, once the loss has left it; of an outlier, some steps later."""
    if alert["name"] in (OUTLIER, NOT_FINITE):
        return bool(newest.progress.get("step", 0) > alert["step"] + OUTLIER_STANDS_STEPS)
    if alert["name"] == SLOWDOWN:
        usual, now = alert.get("usual_tokens_per_s"), newest.progress.get("tokens_per_s")
        return bool(usual and now and now >= SLOW_PART * usual)
    if alert["name"] == PLATEAU:
        stood, now = alert.get("loss"), newest.progress.get("val_loss")
        return bool(stood and now and now <= (1 - STANDS) * stood)
    is_of_checkpoint = alert["name"] == CHECKPOINT_FAILED
    return is_of_checkpoint and bool(checkpoints) and checkpoints[-1].manifest.step > alert["step"]


def read_job(layout: Layout, job: str) -> Job:
    """The job as the storage root has it: ended, else as its newest attempt left it and users want it since."""
    return job_of(layout, read_spec(layout, job), read_attempts(layout, job))


def job_of(layout: Layout, spec: JobSpec, past: Sequence[PastAttempt]) -> Job:
    """The same of a job whose request and attempts were read."""
    job, newest = spec.id, past[-1] if past else None
    outcome = read_outcome(layout, job)
    left = outcome or (newest.ended if newest else None)
    state = left.state if left else JobState.RUNNING if newest else JobState.QUEUED
    state = with_requests(layout, job, JobState.QUEUED if state is JobState.PAUSED else state)
    priority = asked(layout, job, "priority")
    return replace(
        new_job(spec),
        state=state,
        token=newest.attempt.token if newest else 0,
        attempt=len(past),
        priority=spec.priority if priority is None else priority,
        worker=newest.attempt.worker if newest else None,
        used_device=newest.attempt.device if newest else None,
        reason=asked(layout, job, "pause") if state is JobState.PAUSED else left.reason if left else None,
        cause=left.cause if left and not outcome else None,
        progress=newest.progress if newest else {},
    )
