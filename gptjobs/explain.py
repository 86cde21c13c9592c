"""Why a job is in its state, what happens next by itself, and what to type: decided here, from what is known."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gptjobs import checkpoint
from gptjobs.checkpoint import Checkpoint
from gptjobs.config import Plan, as_typed
from gptjobs.errors import GptjobsError, RedisUnreachable
from gptjobs.job import ANY, DEFAULT_PRIORITY, Job, JobSpec, JobState, against_again
from gptjobs.presence import Presence
from gptjobs.progress import duration
from gptjobs.record import PastAttempt, fewer_windows, standing_alert
from gptjobs.reference import BEST, LAST

ATTEMPTS_SHOWN = 5
_ONE_IS_BUSY = "The one slot that could take it is busy:"
_ENDED = {JobState.FAILED: "failed", JobState.DIVERGED: "diverged", JobState.CANCELLED: "was cancelled"}


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Sentences, and the commands that help."""

    because: tuple[str, ...]
    next: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Past:
    """What the storage root has of a job; nothing where it `is_elsewhere`. `hint` is its outcome's; `log_end` the
    last lines of its log."""

    is_elsewhere: bool = False
    plan: Plan | None = None
    attempts: Sequence[PastAttempt] = ()
    checkpoints: Sequence[Checkpoint] = ()
    hint: str | None = None
    log: str | None = None
    log_end: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Queue:
    """What Redis has besides the job; `missing` says why it has not the job itself."""

    jobs: Sequence[Job] = ()
    workers: Sequence[Presence] = ()
    missing: GptjobsError | None = None


def explain(job: Job, past: Past, queue: Queue, *, now: float) -> Explanation:
    """The one clear answer for the job's situation; `now`, seconds since the epoch, is for people."""
    if job.state is JobState.FINISHED:
        return _finished(job, past)
    if job.state.is_terminal:
        return _ended_badly(job, past)
    if queue.missing is not None:
        return _on_record_alone(job, past, queue.missing)
    if job.state.has_trainer:
        return _in_work(job, past, queue, now)
    if job.state is JobState.PAUSED:
        why = f": {job.why}" if job.why else ""
        because = (*_attempts(past), f"It was paused{why}.", "Nothing happens by itself.", _where_it_stands(job, past))
        return Explanation(because=because, next=(f"gptjobs unpause {job.spec.id}", f"gptjobs cancel {job.spec.id}"))
    return _waiting(job, past, queue)


def _finished(job: Job, past: Past) -> Explanation:
    steps = past.plan.settled if past.plan else None
    if job.reason != JobState.FINISHED.value:
        because = [f"It stopped early: {job.reason}."]
    elif steps is not None:
        because = [f"It made all its steps: {steps.start_step} → {steps.end_step}."]
    else:
        because = ["It made all its steps."]
    best = checkpoint.best(past.checkpoints)
    if best is not None:
        because.append(_in_words("Its best checkpoint is", best))
    return Explanation(because=tuple(because), next=(f"gptjobs checkpoints list {job.spec.id}", *_go_on(job, past)))


def _ended_badly(job: Job, past: Past) -> Explanation:
    by = f" in attempt {job.attempt} on {job.worker}" if job.worker else ""
    why = f": {job.why}" if job.why else ""
    because = [*_attempts(past), f"It {_ENDED[job.state]}{by}{why}."]
    because += [f"{often}."] if (often := against_again(job.cause, job.fruitless)) else []
    because.append(_where_it_stands(job, past))
    go_on = _go_on(job, past)
    if past.hint and past.hint not in go_on:
        because.append(f"Hint: {past.hint}.")
    if job.state is JobState.CANCELLED:
        return Explanation(because=tuple(because), next=go_on)
    if job.state is JobState.FAILED and past.log_end:
        because += ["The last lines of its log:", *(f"  {line}" for line in past.log_end)]
    return Explanation(because=tuple(because), next=(f"gptjobs logs -n 50 {job.spec.id}", *go_on))


def _on_record_alone(job: Job, past: Past, missing: GptjobsError) -> Explanation:
    because = [*_attempts(past), _where_it_stands(job, past)]
    if isinstance(missing, RedisUnreachable):
        because.append("Whether it waits or trains now only Redis knows; one that trains goes on without Redis.")
        return Explanation(because=tuple(because), next=("gptjobs doctor", f"gptjobs explain {job.spec.id}"))
    because.append(
        "Redis was flushed, or is another one: a worker that still trains the job puts it back within seconds; else "
        "nothing happens by itself."
    )
    return Explanation(because=tuple(because), next=("gptjobs repair",))


def _in_work(job: Job, past: Past, queue: Queue, now: float) -> Explanation:
    id, shown = job.spec.id, job.to_dict()
    newest = past.attempts[-1] if past.attempts else None
    since = f", for {duration(now - newest.attempt.began_at)}" if newest and newest.attempt.token == job.token else ""
    because = _attempts(past)
    because.append(f"Attempt {job.attempt} trains it on {job.worker}, {job.used_device}{since}.")
    if shown["step"] is not None:
        left = "" if shown["eta_s"] is None else f", {duration(shown['eta_s'])} left"
        because.append(f"It is {shown['stage']}: step {shown['step']} of {shown['end_step']}{left}.")
    elif shown["stage"]:
        because.append(f"It is {shown['stage']}; no step is made yet.")
    because += [f"{fewer}."] if (fewer := fewer_windows(newest, past.plan)) else []
    because += [f"{alert}."] if (alert := standing_alert(newest, past.checkpoints)) else []
    if past.log:
        because.append(f"Its log is {past.log}.")
    if job.worker not in [each.name for each in queue.workers]:
        return _worker_away(job, past, queue, because)
    if job.state is JobState.RUNNING:
        return Explanation(because=tuple(because), next=(f"gptjobs logs -f {id}", f"gptjobs cancel {id}"))
    because.append(f"It was asked to stop ({job.state}): the trainer writes a checkpoint first.")
    return Explanation(because=tuple(because), next=(f"gptjobs wait {id}",))


def _worker_away(job: Job, past: Past, queue: Queue, because: list[str]) -> Explanation:
    because.append(f"But {job.worker} has not been heard of lately: its host, its network or it itself is gone.")
    if not queue.workers:
        because.append(f"No other worker is there to notice and take the job over. {_where_it_stands(job, past)}")
        return Explanation(because=tuple(because), next=("gptjobs worker start",))
    then = "queues it again" if job.state is JobState.RUNNING else "ends it as was asked"
    because.append(f"If its lease does not grow, another worker {then} within seconds. {_where_it_stands(job, past)}")
    return Explanation(because=tuple(because), next=(f"gptjobs explain {job.spec.id}", "gptjobs worker list"))


def _waiting(job: Job, past: Past, queue: Queue) -> Explanation:
    because = _attempts(past)
    if job.attempt:
        because.append(f"It waits again after attempt {job.attempt}: {job.reason or 'lost'}.")
        because.append(_where_it_stands(job, past))
    because += [f"{often}."] if (often := against_again(job.cause, job.fruitless)) else []
    spec = job.spec
    fitting = [each for each in queue.workers if spec.queue in each.queues]
    if not queue.workers:
        return Explanation(because=(*because, "No worker is there to take it."), next=("gptjobs worker start",))
    if not fitting:
        return _none_fits(job, queue, because)
    ahead = _ahead(job, queue, fitting)
    if ahead:
        because.append(f"{_times(ahead, 'job')} of higher or the same priority {_are(ahead)} ahead of it.")
    idle = [each.name for each in fitting if each.busy + spec.gpus <= len(each.slots)]
    if idle:
        when = "takes them in that order" if ahead else "could take it, and does so at once"
        because.append(f"{idle[0]} is idle and {when}; if the doorbell was lost, it rings again within 10 s.")
        return Explanation(because=tuple(because), next=(f"gptjobs logs -f {spec.id}",))
    slots = sum(len(each.slots) for each in fitting)
    if spec.gpus > 1:
        because.append(f"It asks for {spec.wants}, and no worker has as many free:")
    else:
        because.append(f"All {slots} slots that could take it are busy:" if slots > 1 else _ONE_IS_BUSY)
    because += _busy_with(queue, fitting)
    start = f"{spec.worker_command}   # on one more host"
    return Explanation(because=tuple(because), next=(f"gptjobs wait {spec.id}", start))


def _none_fits(job: Job, queue: Queue, because: list[str]) -> Explanation:
    offered = ", ".join(f"{each.name} ({' '.join(each.slots)})" for each in queue.workers)
    because.append(
        f"It asks for {job.spec.wants}, and no worker offers that. There {_are(len(queue.workers))} {offered}."
    )
    on_one = {name: given for name, given in job.spec.overrides.items() if name not in ("gpus", "shard")}
    anywhere = submit_command(replace(job.spec, device=ANY, overrides=on_one))
    return Explanation(
        because=tuple(because), next=(job.spec.worker_command, f"gptjobs cancel {job.spec.id} && {anywhere}")
    )


def _busy_with(queue: Queue, fitting: Sequence[Presence]) -> list[str]:
    jobs = {each.spec.id: each for each in queue.jobs}
    lines = []
    for worker in fitting:
        for id in worker.jobs:
            eta = jobs[id].to_dict()["eta_s"] if id in jobs else None
            name = f" ({jobs[id].spec.name})" if id in jobs and jobs[id].spec.name else ""
            left = "time left not known yet" if eta is None else f"{duration(eta)} left"
            lines.append(f"  {id}{name} on {worker.name}, {left}")
    return lines


def _ahead(job: Job, queue: Queue, fitting: Sequence[Presence]) -> int:
    """How many waiting jobs the fitting workers take before this one."""
    queues = {name for each in fitting for name in each.queues}
    place = (-job.priority, job.spec.submitted_at)
    waiting = (each for each in queue.jobs if each.state is JobState.QUEUED and each.spec.id != job.spec.id)
    return sum(each.spec.queue in queues and (-each.priority, each.spec.submitted_at) < place for each in waiting)


def _attempts(past: Past) -> list[str]:
    """What became of the attempts before the newest, whose end is the job's own."""
    lines = []
    for number, each in list(enumerate(past.attempts, 1))[-1 - ATTEMPTS_SHOWN : -1]:
        first, last = each.attempt.start_step, each.progress.get("step", each.attempt.start_step)
        how = each.ended.reason if each.ended else "its worker was lost"
        lines.append(f"Attempt {number} on {each.attempt.worker} went from step {first} to {last}: {how}.")
    return lines


def _where_it_stands(job: Job, past: Past) -> str:
    """From where the job goes on, or could."""
    if past.is_elsewhere:
        return "Its checkpoints lie in the storage root, which is not here."
    if past.checkpoints:
        return _in_words("Its last checkpoint is", past.checkpoints[-1])
    if job.state.is_terminal:
        return "It left no checkpoint."
    if job.spec.parent:
        return f"It has no checkpoint of its own yet, and begins from {job.spec.parent}."
    return "It has no checkpoint yet, and begins from scratch."


def _in_words(begin: str, each: Checkpoint) -> str:
    loss = each.manifest.losses.val_loss
    with_loss = "" if loss is None else f", validation loss {loss:.4f}"
    return f"{begin} of step {each.manifest.step}{with_loss}."


def _go_on(job: Job, past: Past) -> tuple[str, ...]:
    """The command that goes on from the job's checkpoints, or submits it again where it has none."""
    if past.is_elsewhere:
        return (f"gptjobs submit resume --from {job.spec.id}@{LAST}",)
    if job.state in (JobState.FAILED, JobState.CANCELLED):
        otherwise = () if past.checkpoints else (submit_command(job.spec),)
        return (f"gptjobs retry {job.spec.id}", *otherwise)
    if not past.checkpoints:
        return (submit_command(job.spec),)
    best = LAST if checkpoint.best(past.checkpoints) is None else BEST
    resume = f"gptjobs submit resume --from {job.spec.id}@"
    if job.state is JobState.FINISHED:
        return (f"{resume}{best} --steps 1000",)
    if job.state is JobState.DIVERGED:
        rate = past.checkpoints[-1].manifest.settled.train.learning_rate / 10
        return (f"{resume}{best} --learning-rate {rate:.3g}",)
    return ()


def submit_command(spec: JobSpec) -> str:
    """What submits such a job, as it can be typed."""
    words = ["gptjobs", "submit", spec.kind]
    words += ["--from", spec.parent] if spec.parent else []
    words += as_typed(spec.overrides)
    words += ["--name", spec.name] if spec.name else []
    words += ["--device", spec.device] if spec.device != ANY else []
    words += ["--priority", str(spec.priority)] if spec.priority != DEFAULT_PRIORITY else []
    words += ["--accept-data-change"] if spec.accept_data_change else []
    return shlex.join(words)


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
