"""One child process of an attempt, a trainer or an encoder: drain its lines, hold its leash, stop it, kill it."""

import logging
import os
import queue
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gptjobs import progress
from gptjobs.job import Cause
from gptjobs.progress import CheckpointWritten, Finished, Line, Progress, StageBegan
from worker.awake import awake_for
from worker.child import SECOND_REQUEST
from worker.host import oom_kills
from worker.lease import HeldLease

LEASH_S = 2.0
POLL_S = 0.25
STOOD_STILL_S = 10.0
"""between two looks: the supervisor itself was frozen, and the trainer most likely with it"""
STOP_LIMIT_S = 300.0
"""for a checkpoint after SIGTERM, before the child is killed"""
HANG_LIMIT_S = 300.0
HANG_STEPS = 20
FIRST_STEP_LIMIT_S = 3600.0
"""before the time of a step is known"""
LONGEST_LINE = 1 << 16
"""bytes; a report has some hundred"""
LINES_AHEAD = 1000
"""lines that are read before they are taken: a child that writes faster waits"""
_STEPS_REMEMBERED = 50
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child ended. Without its last line (`finished`) it crashed. `cause` is for an end before the job's."""

    finished: Finished | None
    cause: Cause
    words: str
    wrote_checkpoint: bool


class Drain(threading.Event):
    """Set when the worker is to stop: once its jobs have checkpoints, or `at_once` without them."""

    def __init__(self) -> None:
        super().__init__()
        self.at_once = threading.Event()


class Supervisor:
    """Runs one child to its end. `on_line` gets each line, decoded and raw."""

    def __init__(
        self, command: list[str], log: IO[bytes], held: HeldLease, drain: Drain,
        on_line: Callable[[Line, str], None],
    ) -> None:  # fmt: skip
        self._held, self._drain, self._on_line = held, drain, on_line
        self._child = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue(LINES_AHEAD)
        threading.Thread(target=self._read, name=f"lines of {self._child.pid}", daemon=True).start()
        self._let_go = threading.Event()
        self._leash = threading.Thread(target=self._hold_leash, name=f"leash of {self._child.pid}", daemon=True)
        self._finished: Finished | None = None
        self._wrote_checkpoint = False
        self._killed_for: tuple[Cause, str] | None = None
        self._oom_kills = oom_kills()
        self._asked_at: float | None = None
        self._hang = HangWatch()

    @property
    def pid(self) -> int:
        return self._child.pid

    def _read(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as stream:
            for line in lines_of(stream):
                self._lines.put(line.decode(errors="replace"))
        self._lines.put(None)

    def run(self) -> Ended:
        """Supervise until the child's lines end and it is gone; nothing of it is left behind, whatever happens."""
        self._leash.start()
        try:
            with awake_for(self._child.pid):
                self._supervise()
                code = self._child.wait()
        finally:
            self._kill_group()
            self._let_go.set()
            self._leash.join()
        cause, words = self._killed_for or self._cause(code)
        return Ended(finished=self._finished, cause=cause, words=words, wrote_checkpoint=self._wrote_checkpoint)

    def _cause(self, code: int) -> tuple[Cause, str]:
        """By the child's last line, else by its return code."""
        finished = self._finished
        if finished is None:
            return cause_of(code, out_of_memory=oom_kills() > self._oom_kills)
        if finished.outcome == "stopped":
            return Cause.STOPPED, Cause.STOPPED.value
        known = {each.value: each for each in Cause}
        cause = known.get(finished.cause or "", Cause.REFUSED if finished.exit_code > 1 else Cause.ERROR)
        return cause, finished.reason or finished.outcome

    def _supervise(self) -> None:
        looked_at = time.monotonic()
        while True:
            try:
                line = self._lines.get(timeout=POLL_S)
            except queue.Empty:
                pass
            else:
                if line is None:
                    return
                self._take(line)
            now = time.monotonic()
            if now - looked_at > STOOD_STILL_S:
                self._hang.forgive(now)
            looked_at = now
            self._stop_or_kill(now)

    def _take(self, text: str) -> None:
        line = progress.decode(text)
        if line is None:
            return
        self._hang.note(line, time.monotonic())
        if isinstance(line, Finished):
            self._finished = line
        elif isinstance(line, CheckpointWritten):
            self._wrote_checkpoint = True
        if not self._held.lost:
            self._on_line(line, text)

    def _hold_leash(self) -> None:
        """In a thread of its own: storage that hangs holds up whoever keeps the child's lines, not the leash."""
        assert self._child.stdin is not None
        with suppress(BrokenPipeError), self._child.stdin as leash:
            while not self._let_go.wait(LEASH_S):
                if not self._held.lost:
                    leash.write(b".")

    def stop(self) -> None:
        """Ask the child to stop, with a checkpoint."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            self._child.send_signal(signal.SIGTERM)

    def _stop_or_kill(self, now: float) -> None:
        if self._killed_for is not None:
            return
        if self._held.lost:
            self._kill(Cause.STOPPED, "fenced")
        elif self._held.is_to_end_now or self._drain.at_once.is_set():
            self._kill(Cause.STOPPED, "stopped at once")
        elif self._asked_at is None and (self._drain.is_set() or self._held.is_asked_to_stop):
            self.stop()
        elif self._asked_at is not None and now - self._asked_at > STOP_LIMIT_S:
            self._kill(Cause.STOPPED, f"it did not stop within {STOP_LIMIT_S:.0f} s")
        elif self._hang.is_over(now):
            self._kill(Cause.HUNG, "hung: no progress")

    def _kill(self, cause: Cause, why: str) -> None:
        self._killed_for = cause, why
        logger.warning("killing process %d: %s", self._child.pid, why)
        self._kill_group()

    def _kill_group(self) -> None:
        """Also what the child started; it leads a session, so its group is its own."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)


def lines_of(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of an unbuffered stream, without their ends; what is longer than any report is dropped as it comes."""
    rest, is_too_long = b"", False
    while chunk := stream.read(LONGEST_LINE):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if len(line) <= LONGEST_LINE and not is_too_long:
                yield line
            is_too_long = False
        if len(rest) > LONGEST_LINE:
            rest, is_too_long = b"", True
    if rest and not is_too_long:
        yield rest


class HangWatch:
    """Tells a hung trainer: no line for max(5 min, 20 median steps) while it trains; an hour while it loads, encodes
    or makes the first step, as a large model on a CPU takes long over one. Saving and evaluating have no limit."""

    def __init__(self) -> None:
        self._stage = "loading"
        self._heard_at = time.monotonic()
        self._last_step: int | None = None
        self._trained_s = 0.0
        """since the last step that was reported, without other stages"""
        self._step_seconds: deque[float] = deque(maxlen=_STEPS_REMEMBERED)

    def note(self, line: Line, now: float) -> None:
        if self._stage == "training":
            self._trained_s += now - self._heard_at
        self._heard_at = now
        if isinstance(line, StageBegan):
            self._stage = line.stage
        elif isinstance(line, Progress):
            if self._last_step is not None and line.step > self._last_step:
                self._step_seconds.append(self._trained_s / (line.step - self._last_step))
            self._last_step, self._trained_s = line.step, 0.0

    def forgive(self, now: float) -> None:
        """What was not heard while the supervisor itself stood still."""
        self._heard_at = now

    def is_over(self, now: float) -> bool:
        if self._stage in ("evaluating", "saving"):
            return False
        if self._stage != "training" or not self._step_seconds:
            return now - self._heard_at > FIRST_STEP_LIMIT_S
        return now - self._heard_at > max(HANG_LIMIT_S, HANG_STEPS * statistics.median(self._step_seconds))


def cause_of(code: int, *, out_of_memory: bool) -> tuple[Cause, str]:
    """A return code: its cause, and in words. `out_of_memory` tells that the kernel killed something meanwhile."""
    if code == SECOND_REQUEST:
        return Cause.KILLED, "killed from outside: SIGTERM, twice"
    if code >= 0:
        return Cause.EXIT_CODE, f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    if -code == signal.SIGKILL and out_of_memory:
        return Cause.OUT_OF_MEMORY, "out of memory: the kernel killed the trainer"
    if -code == signal.SIGBUS:
        return Cause.STORAGE, "a mapped file of the storage root could not be read: SIGBUS"
    if -code in _FROM_OUTSIDE:
        return Cause.KILLED, f"killed from outside: {name}"
    return Cause.SIGNAL, f"signal {name}"


def trainer_command(config: Path, token: int) -> list[str]:
    return ["-m", "worker.trainer", str(config), "--attempt", str(token), "--leash"]


def encoder_command(config: Path, source: Path) -> list[str]:
    return ["-m", "worker.encode", str(config), str(source)]
