"""Keeps a Mac awake while a job runs there, also with its display off; elsewhere nothing needs to be done."""

import logging
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def awake_for(pid: int) -> Iterator[None]:
    """While this block, and the process, last: caffeinate ends with the process also where the worker is killed."""
    command = shutil.which("caffeinate") if platform.system() == "Darwin" else None
    if command is None:
        yield
        return
    try:
        # -i: not for idleness; -s: nor otherwise while on mains power
        caffeinate = subprocess.Popen(
            [command, "-is", "-w", str(pid)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        logger.warning("nothing keeps this Mac awake: %s", error)
        yield
        return
    try:
        yield
    finally:
        caffeinate.terminate()
        caffeinate.wait()
