"""One contender's process, watched from outside: when its lines come, what of the CPU and of memory it had by then.

The same clock for all, whatever a contender says of itself. Needs Linux's /proc.
"""

import os
import re
import signal
import statistics
import subprocess
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench.contenders import Launch, steps_made

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """The contender ended before enough of its steps were timed."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long a process is watched: at least so many seconds and lines after the first steps."""

    warm_steps: int = 2
    seconds: float = 10.0
    lines: int = 3


@dataclass(frozen=True, kw_only=True)
class Sample:
    step_s: float
    """the median between two lines"""
    cpu_s: float
    """user and system, of all threads, a step"""
    peak_bytes: int
    first_s: float
    """from the process' start to its first line: imports, first weights, compilation, a step"""

    def __str__(self) -> str:
        return f"{1000 * self.step_s:.1f} ms a step, the first after {self.first_s:.1f} s"


@dataclass(frozen=True, kw_only=True)
class Mark:
    made: int
    at: float
    cpu_s: float


def measure(launch: Launch, environment: dict[str, str], effort: Effort) -> Sample:
    """Start the contender, watch it and kill it. Raises Failed with what it wrote to standard error."""
    log = launch.folder / "stderr"
    began = time.monotonic()
    first_s: float | None = None
    marks: list[Mark] = []
    with log.open("wb") as errors, subprocess.Popen(
        launch.command, cwd=launch.folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            for line in process.stdout:
                made = steps_made(line)
                if made is None:
                    continue
                mark = Mark(made=made, at=time.monotonic(), cpu_s=_cpu_s(process.pid))
                first_s = first_s or mark.at - began
                if made >= effort.warm_steps:
                    marks.append(mark)
                if len(marks) > effort.lines and mark.at - marks[0].at >= effort.seconds:
                    return _sample(marks, _peak_bytes(process.pid), first_s)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    raise Failed(_why(log))


def _sample(marks: list[Mark], peak_bytes: int, first_s: float) -> Sample:
    return Sample(
        step_s=statistics.median((later.at - mark.at) / (later.made - mark.made) for mark, later in pairwise(marks)),
        cpu_s=(marks[-1].cpu_s - marks[0].cpu_s) / (marks[-1].made - marks[0].made),
        peak_bytes=peak_bytes,
        first_s=first_s,
    )


def _cpu_s(process: int) -> float:
    after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return _TICK_S * (int(after_name[11]) + int(after_name[12]))


def _peak_bytes(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _why(log: Path) -> str:
    """The first line of the last exception, else the last line."""
    text = log.read_text(errors="replace").strip()
    return (re.findall(r"^[\w.]+(?:Error|Exception): .+", text, re.M) or text.splitlines() or ["it said nothing"])[-1]
