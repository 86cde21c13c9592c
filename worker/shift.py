"""`python -m worker.shift`: a worker that works in shifts. Within its hours, and on mains power, a worker runs as a
child of this process; outside them it is drained, and this process waits for the next shift.

So the worker itself knows of no hours, and whoever keeps this process up (systemd, launchd) sees no worker that ends
every morning. It also keeps the worker's log, where it is told to: a file that is replaced before it grows too large.
"""

import argparse
import logging
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType

import psutil

from gptjobs import hours
from gptjobs.errors import UsageError
from gptjobs.hours import Hours, on_the_clock
from worker.child import SECOND_REQUEST

LOOK_S = 15.0
GRACE_S = 60.0
"""for which mains power is to be gone, or back, before that counts: a plug that is moved drains nothing"""
LOG_BYTES = 10_000_000
OLDER_LOGS = 5
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Rest = Callable[[], str | None]
"""Why no worker is to run now, in words; None where one is."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.shift", epilog="The rest goes to the worker.")
    parser.add_argument("--hours", type=hours.parse, help="within which it works: 22-8")
    parser.add_argument("--on-ac-only", action="store_true", help="not on battery")
    parser.add_argument("--log", type=Path, help="the log's file, instead of standard error")
    arguments, of_worker = parser.parse_known_args()
    try:
        log = open_log(arguments.log) if arguments.log else None
    except OSError as error:
        print(f"error: the log cannot be written: {arguments.log}: {error.strerror}", file=sys.stderr)
        return UsageError.exit_code
    mains = Mains() if arguments.on_ac_only else None
    shifts = Shifts([sys.executable, "-m", "worker", "--leash", *of_worker], rest(arguments.hours, mains), log)
    for each in _STOPS:
        if signal.getsignal(each) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(each, shifts.stop)
    return shifts.run()


def is_plugged() -> bool:
    """Whether this host is on mains power, which one without a battery always is."""
    with suppress(AttributeError, OSError, ValueError, RuntimeError):  # where a system does not tell
        battery = psutil.sensors_battery()
        return battery is None or battery.power_plugged is not False
    return True


class Mains:
    """Mains power that stays, or stays away."""

    def __init__(self, plugged: Callable[[], bool] = is_plugged, clock: Callable[[], float] = time.monotonic) -> None:
        self._plugged, self._clock = plugged, clock
        self._is_on = self._plugged()
        self._otherwise_since: float | None = None

    def is_on(self) -> bool:
        """As it has been for a while; to be asked all the time."""
        if self._plugged() is self._is_on:
            self._otherwise_since = None
        elif self._otherwise_since is None:
            self._otherwise_since = self._clock()
        elif self._clock() - self._otherwise_since >= GRACE_S:
            self._is_on, self._otherwise_since = not self._is_on, None
        return self._is_on


def rest(within: Hours | None, mains: Mains | None, clock: Callable[[], time.struct_time] = time.localtime) -> Rest:
    def why() -> str | None:
        time.tzset()  # a host that travels
        on_mains = mains is None or mains.is_on()
        if within is not None and not within.contain(clock()):
            return f"outside the hours {within}: until {on_the_clock(within.begin)}"
        return None if on_mains else "on battery: until it is plugged in"

    return why


class Shifts:
    """Runs `command`, whose SIGTERM drains, except while there is reason to rest. `log` gets what it prints, as it is,
    and what is said here; without one the command prints where this process does."""

    def __init__(self, command: list[str], why_rest: Rest, log: logging.Logger | None = None) -> None:
        self._command, self._why_rest, self._log = command, why_rest, log
        self._worker: subprocess.Popen[bytes] | None = None
        self._is_stopping = False
        self._rests_for: str | None = None
        self._events: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        """the worker's exit codes, and None where this process is to stop. Its `put` is safe in a signal's handler,
        other than those of queues and events."""

    def run(self) -> int:
        """Until `stop`, or until the worker ends that nobody here asked to: drained or stopped by its user, or fallen.
        Returns its exit code."""
        while True:
            if not self._is_stopping:
                self._look()
            try:
                event = self._events.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            if event is not None:
                self._worker = None
                if event == SECOND_REQUEST:
                    return 0  # its user had it stop at once: no service manager is to start it again
                if self._is_stopping or self._rests_for is None:
                    return event if event >= 0 else 128 - event  # killed by a signal, as a shell tells it
            elif self._worker is None:
                return 0
            else:
                if self._is_stopping or self._rests_for is None:  # a second SIGTERM does not wait for checkpoints
                    self._worker.send_signal(signal.SIGTERM)
                self._is_stopping = True

    def stop(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """A signal's handler."""
        self._events.put(None)

    def _look(self) -> None:
        why = self._why_rest()
        if why is None and self._worker is None:
            self._rests_for = None
            self._start()
        elif why is not None and why != self._rests_for:
            self._say(f"resting {why}")
            if self._worker is not None and self._rests_for is None:
                self._worker.send_signal(signal.SIGTERM)
            self._rests_for = why

    def _start(self) -> None:
        """In a session of its own, which Ctrl-C does not reach; if this process dies, the leash drains it."""
        into_log = subprocess.PIPE if self._log else None
        self._worker = worker = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=into_log, stderr=into_log and subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=self._see_out, args=(worker,), name=f"worker {worker.pid}", daemon=True).start()

    def _see_out(self, worker: "subprocess.Popen[bytes]") -> None:
        if self._log is not None and worker.stdout is not None:
            with worker.stdout as lines:
                for line in lines:
                    self._log.info("%s", line.decode(errors="replace").rstrip())
        code = worker.wait()
        assert worker.stdin is not None
        worker.stdin.close()
        self._events.put(code)

    def _say(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} INFO {text}"
        if self._log is not None:
            self._log.info("%s", line)
        else:
            print(line, file=sys.stderr, flush=True)


def open_log(path: Path) -> logging.Logger:
    """A file that makes room for a new one before it grows too large; of the older ones some are kept."""
    file = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=OLDER_LOGS, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("log of the worker")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(file)
    return log


if __name__ == "__main__":
    sys.exit(main())
