"""What people are told of a job or a sweep, in words: plain text, short enough for a phone."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gptjobs import checkpoint, findings, trials
from gptjobs.history import History
from gptjobs.job import JobSpec, JobState, Outcome, plain
from gptjobs.layout import Layout
from gptjobs.notify import Kind, Message
from gptjobs.progress import FALL, Alert, duration
from gptjobs.sweep import Sweep, params_in_words
from worker.report import resume_command

LONGEST = 400
"""characters of a reason"""
SHOWN_TRIALS = 3
_KINDS = {JobState.FINISHED: Kind.SUCCESS, JobState.FAILED: Kind.FAILURE, JobState.DIVERGED: Kind.FAILURE}


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a job went, as far as the storage root tells."""

    step: int | None = None
    first: Mapping[str, Any] | None = None
    """the first line with an evaluation, and so on"""
    last: Mapping[str, Any] | None = None
    best: Mapping[str, Any] | None = None
    seconds: float | None = None
    """since its first attempt began"""
    attempts: int = 0
    where: str | None = None


def course_of(layout: Layout, job: str, now: float) -> Course:
    """Nothing of a root that is away: a message goes out all the same."""
    with suppress(OSError):
        metrics = History(layout, job).read().metrics
        attempts = checkpoint.attempts(layout, job)
        evaluated = [each for each in metrics if each["val_loss"] is not None]
        return Course(
            step=metrics[-1]["step"] if metrics else None,
            first=evaluated[0] if evaluated else None,
            last=evaluated[-1] if evaluated else None,
            best=min(evaluated, key=lambda each: float(each["val_loss"]), default=None),
            seconds=now - attempts[0].began_at if attempts else None,
            attempts=len(attempts),
            where=f"{attempts[-1].worker}, {attempts[-1].device}" if attempts else None,
        )
    return Course()


def of_end(layout: Layout, spec: JobSpec, outcome: Outcome) -> Message:
    """Of a job that finished, failed or diverged."""
    course = course_of(layout, spec.id, time.time())
    why = None if outcome.reason == outcome.state.value else _short(outcome.reason)
    if outcome.state is JobState.FINISHED:
        commands = [f"gptjobs show {spec.id}"]
    elif outcome.state is JobState.DIVERGED:
        commands = [f"gptjobs diagnose {spec.id}"]
    else:
        commands = [f"gptjobs explain {spec.id}", f"gptjobs retry {spec.id}"]
    return Message(
        title=f"{spec.called}: {outcome.state}{_at(course.step)}{_losses(course)}",
        body=_lines(why, outcome.hint and f"hint: {_short(outcome.hint)}", *_how_it_went(course), *commands),
        kind=_KINDS[outcome.state],
    )


def of_rollback(layout: Layout, spec: JobSpec, outcome: Outcome) -> Message:
    """Of an attempt that a spike ended, before which its job goes on."""
    course = course_of(layout, spec.id, time.time())
    back = "It goes back to before that, and on without what it had read there."
    with suppress(OSError):
        counting = checkpoint.counting(layout, spec.id)
        if counting:
            back = f"It goes back to step {counting[-1].manifest.step} and on without what it had read there."
    return Message(
        title=f"{spec.called}: spike{_at(course.step)}, going back",
        body=_lines(_short(outcome.reason), back, *_how_it_went(course), f"gptjobs diagnose {spec.id}"),
        kind=Kind.WARNING,
    )


def of_pause(layout: Layout, spec: JobSpec, outcome: Outcome) -> Message:
    """Of a job that waits for somebody to make room."""
    course = course_of(layout, spec.id, time.time())
    return Message(
        title=f"{spec.called}: paused{_at(course.step)}, no space",
        body=_lines(_short(outcome.reason), *_how_it_went(course)),
        kind=Kind.WARNING,
    )


def of_alert(layout: Layout, spec: JobSpec, alert: Alert) -> Message:
    """Of a plateau, or a spike that the job trains on through."""
    course = course_of(layout, spec.id, time.time())
    is_spike = alert.loss is None
    name = "fall of the loss" if alert.name == FALL else alert.name
    return Message(
        title=f"{spec.called}: {name}{_at(alert.step)}{'' if is_spike else f', val loss {alert.loss:.4f}'}",
        body=_lines(
            _short(alert.reason),
            "It trains on." if is_spike else None,
            *_how_it_went(course),
            f"gptjobs diagnose {spec.id}",
        ),
        kind=Kind.WARNING,
    )


def of_sweep(layout: Layout, sweep: Sweep) -> Message:
    """Of a sweep that ended, or could not begin."""
    tried = trials.read(layout, sweep.id)
    if not tried:
        why = layout.summary_file(sweep.id).read_text().partition("\n\n")[2].strip()
        return Message(title=f"{sweep.called}: sweep failed", body=_lines(_short(why)), kind=Kind.FAILURE)
    ranking = trials.rank(tried)
    best = [row for row in findings.rows(ranking) if row["rank"]][:SHOWN_TRIALS]
    states = Counter(each.state for each in tried)
    head = [f"{row['rank']}. trial {row['trial']}  {row['val_loss']:.4f}  {_params(row)}" for row in best]
    title = f"{sweep.called}: sweep finished, "
    title += f"best val loss {best[0]['val_loss']:.4f}, {_params(best[0])}" if best else "no trial made all its steps"
    bad = states[JobState.FAILED.value] + states[JobState.DIVERGED.value]
    return Message(
        title=title,
        body=_lines(
            f"{_times(len(tried), 'trial')}: {', '.join(f'{count} {state}' for state, count in states.items())}",
            *head,
            f"{duration(time.time() - sweep.submitted_at)} since it was submitted",
            f"gptjobs sweep show {sweep.called}",
            resume_command(sweep) if best else None,
        ),
        kind=Kind.SUCCESS if best and not bad else Kind.WARNING if best else Kind.FAILURE,
    )


def _at(step: int | None) -> str:
    return "" if step is None else f" at step {step}"


def _losses(course: Course) -> str:
    last, best = course.last, course.best
    if last is None or best is None:
        return ""
    is_best = best["step"] == last["step"]
    return f", val loss {last['val_loss']:.4f}" + (
        " (its best)" if is_best else f" (best {best['val_loss']:.4f} at step {best['step']})"
    )


def _how_it_went(course: Course) -> Sequence[str]:
    first, last, lines = course.first, course.last, []
    if first and last and first["step"] < last["step"]:
        lines.append(f"val loss {first['val_loss']:.4f} → {last['val_loss']:.4f}, context {last['eval_context']}")
    if course.seconds is not None:
        lines.append(f"{duration(course.seconds)} in {_times(course.attempts, 'attempt')}, {course.where}")
    return lines


def _params(row: Mapping[str, Any]) -> str:
    return _short(params_in_words(row["params"]))


def _lines(*lines: str | None) -> str:
    return "\n".join(each for each in lines if each)


def _short(text: str) -> str:
    return plain(text) if len(text) <= LONGEST else f"{plain(text[:LONGEST])}…"


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
