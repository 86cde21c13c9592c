"""`python -m worker.track TRACKER ROOT JOB TOKEN`: lets a tracker follow an attempt, by what the attempt writes down.

A tracker is a copy of the job's record. Each attempt begins with all that counts of those before it, so that what a
crash, a lost host or a tracker's own failure left out or left wrong is right from then on; the steps that the job went
back over are purged, each tracker in its way. Ends within GRACE_S after its standard input, or as soon as a later
attempt is on record.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path
from typing import Protocol

from gptjobs import checkpoint, record, trials
from gptjobs.history import History, Line, attempt_lines
from gptjobs.job import Outcome
from gptjobs.layout import Layout
from gptjobs.trackers import EXTRAS
from worker.subject import Subject

LOOK_S = 1.0
GRACE_S = 30.0
"""for what is left to write or to send once the attempt has ended"""
NICENESS = 10
"""behind the trainer, where both want the processor"""


class Target(Protocol):
    """A tracker's way to keep an attempt. It gets the job's lines by step, first those from before; an alert that
    `is_told` is one of them. `end` gets how the attempt ended, or None where it did not: its worker is gone, or a later
    attempt took over."""

    def progress(self, line: Line) -> None: ...

    def alert(self, line: Line, *, is_told: bool) -> None: ...

    def flush(self) -> None: ...

    def end(self, outcome: Outcome | None) -> None: ...


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.track")
    parser.add_argument("tracker", choices=EXTRAS)
    parser.add_argument("root", type=Path)
    parser.add_argument("job")
    parser.add_argument("token", type=int)
    asked = parser.parse_args()
    os.nice(NICENESS)
    over = threading.Event()
    threading.Thread(target=_watch_input, args=(over,), name="input", daemon=True).start()
    try:
        _follow(asked.tracker, Layout(asked.root), asked.job, asked.token, over)
    except Exception as error:  # noqa: BLE001  # the edge of the process: the worker puts this into the job's log
        words = str(error).splitlines() or [""]
        print(f"{type(error).__name__}: {words[0]}", file=sys.stderr, flush=True)
        return 1
    return 0


def _watch_input(over: threading.Event) -> None:
    """Read with os.read: a buffered read in a thread aborts the interpreter's exit."""
    while os.read(0, 4096):
        pass
    over.set()
    time.sleep(GRACE_S)
    os.write(2, f"not done {GRACE_S:g} s after the attempt's end\n".encode())
    os._exit(1)  # wandb's process of its own sees that, and ends too


def _follow(tracker: str, layout: Layout, job: str, token: int, over: threading.Event) -> None:
    while not over.wait(LOOK_S) and not _has_reported(layout, job, token):
        pass
    if not layout.attempt_file(job, token).is_file():
        return  # it ended before it began: cancelled while it waited, say
    history = History(layout, job).read()
    if not history.metrics or _is_superseded(layout, job, token):
        return
    target = _target(tracker, _subject(layout, job, token))
    for line in history.metrics:
        target.progress(line)
    for line in _alerts_before(layout, job, token, history):
        target.alert(line, is_told=True)
    ended, read_bytes, step = None, 0, history.metrics[-1]["step"]
    while not _is_superseded(layout, job, token):
        is_over = over.is_set()  # before its lines are read, so that none is written after the last look
        lines, read_bytes = attempt_lines(layout, job, token, read_bytes)
        for line in lines:
            if line["kind"] == "progress" and line["step"] > step:
                target.progress(line)
                step = line["step"]
            elif line["kind"] == "alert":
                target.alert(line, is_told=False)
            elif line["kind"] == "ended":
                ended = Outcome.from_dict(line)
        target.flush()
        if is_over:
            break
        over.wait(LOOK_S)
    target.end(ended)


def _has_reported(layout: Layout, job: str, token: int) -> bool:
    """Its first line is at the step where it starts, and may complete the last one of the attempt before."""
    return any(line["kind"] == "progress" for line in attempt_lines(layout, job, token)[0])


def _is_superseded(layout: Layout, job: str, token: int) -> bool:
    return checkpoint.latest_token(layout, job) > token


def _alerts_before(layout: Layout, job: str, token: int, history: History) -> list[Line]:
    """Of earlier attempts, by step, without those on dead branches."""
    until = dict(checkpoint.lineage(layout, job))
    told = [each for each in history.events if each["kind"] == "alert" and each["token"] != token]
    return sorted(
        (each for each in told if each["step"] <= until.get(each["token"], -1)), key=lambda each: each["step"]
    )


def _subject(layout: Layout, job: str, token: int) -> Subject:
    spec, plan = record.read_spec(layout, job), record.read_plan(layout, job)
    assert plan is not None
    return Subject(
        layout=layout,
        spec=spec,
        plan=plan,
        attempt=checkpoint.read_attempt(layout, job, token),
        group=trials.read_sweep(layout, spec.sweep).called if spec.sweep else spec.called,
        branch=_branch(layout, job),
    )


def _branch(layout: Layout, job: str) -> int | None:
    branch, reported = None, -1
    for each in checkpoint.attempts(layout, job):
        if each.start_step < reported:
            branch, reported = each.token, each.start_step
        steps = [line["step"] for line in attempt_lines(layout, job, each.token)[0] if line["kind"] == "progress"]
        reported = max([reported, *steps])
    return branch


def _target(tracker: str, subject: Subject) -> Target:
    """Imported here, as only one of the packages need be installed."""
    if tracker == "wandb":
        from worker.track_wandb import Wandb

        return Wandb(subject)
    from worker.track_tensorboard import TensorBoard

    return TensorBoard(subject)


if __name__ == "__main__":
    sys.exit(main())
