"""A question to a process of its own: what it waits for may hang, and then even SIGKILL may not end it."""

import subprocess
import sys
from contextlib import suppress

KILLED_LIMIT_S = 1.0


class NoAnswer(Exception):
    """The child failed or took too long; in words, why. `told` is what it had printed."""

    def __init__(self, why: str, *, told: str = "", hung: bool = False) -> None:
        self.told, self.hung = told, hung
        super().__init__(why)


def answer(module: str, *words: str, limit_s: float) -> str:
    """What `python -m module` prints; raises NoAnswer. A child that cannot be killed, as in a file system that hangs,
    is left behind: subprocess.run would wait for it."""
    command = [sys.executable, "-m", module, *words]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        told, said = (each.decode(errors="replace").strip() for each in child.communicate(timeout=limit_s))
    except subprocess.TimeoutExpired as late:
        child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=KILLED_LIMIT_S)
        told = (late.output or b"").decode(errors="replace")
        raise NoAnswer(f"no answer within {limit_s:g} s", told=told, hung=True) from None
    if child.returncode:
        last = (said.splitlines() or [f"ended with {child.returncode}"])[-1]
        raise NoAnswer(last, told=told)
    return told
