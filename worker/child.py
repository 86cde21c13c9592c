"""What a child of the supervisor does first: claim its standard output, mind its leash, take SIGTERM.

Imports nothing heavy, so that a child listens before it loads torch.
"""

import os
import select
import signal
import sys
import threading
import time
from types import FrameType

from gptjobs import progress

LEASH_POLL_S = 1.0
LEASH_POLLS = 60
SAME_REQUEST_S = 2.0
SECOND_REQUEST = 128 + signal.SIGTERM
"""the exit code after one"""


class Stop:
    """Whether the child was asked to stop at the next safe place. A second request is immediate; what comes
    right after the first is the same one, sent to the whole group by the system and by the supervisor."""

    def __init__(self) -> None:
        self.requested = False
        self._first_at = 0.0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._first_at = True, time.monotonic()
        elif time.monotonic() - self._first_at > SAME_REQUEST_S:
            os._exit(SECOND_REQUEST)

    def listen(self) -> "Stop":
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        return self


class Report:
    """The child's lines. Takes file descriptor 1 for itself: a stray print goes to standard error."""

    def __init__(self) -> None:
        self.descriptor = os.dup(1)
        os.dup2(2, 1)

    def __call__(self, line: progress.Line) -> None:
        os.write(self.descriptor, progress.encode(line, seconds=time.time()).encode() + b"\n")


def log(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def mind_the_leash(*, of_group: bool = True) -> None:
    """Kill this process group, or this process alone, once standard input ends or stays silent: the supervisor is gone
    or fenced.

    Polls are counted, not seconds: a host that slept has not lost its supervisor. Read with os.read, as a
    buffered read in a thread aborts the interpreter's exit.
    """

    def watch() -> None:
        silent = 0
        while silent < LEASH_POLLS:
            ready, _, _ = select.select([0], [], [], LEASH_POLL_S)
            if not ready:
                silent += 1
            elif os.read(0, 4096):
                silent = 0
            else:
                break
        if not of_group:
            os.kill(os.getpid(), signal.SIGKILL)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="leash", daemon=True).start()
