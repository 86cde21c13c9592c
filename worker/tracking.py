"""Starts a process for each tracker of an attempt, and tells in the job's log where one failed.

A process each, as their packages are large, talk to networks and crash as they like: training does not notice. It
follows what the attempt writes down until its standard input ends, because the attempt has ended or its worker is gone.
"""

import logging
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from gptjobs import settings
from gptjobs.layout import Layout
from worker import joblog

logger = logging.getLogger(__name__)


@contextmanager
def tracked(trackers: Sequence[str], layout: Layout, job: str, token: int) -> Iterator[None]:
    """While the attempt `token` goes on. Does not wait for what the trackers have left to do: see worker/track.py."""
    inputs: list[IO[bytes]] = []
    for each in trackers:
        try:
            inputs.append(_start(each, layout, job, token))
        except (OSError, RuntimeError) as error:  # no process, no thread
            logger.warning("job %s: --track %s could not start: %s", job, each, error)
    try:
        yield
    finally:
        for stream in inputs:
            stream.close()


def _start(tracker: str, layout: Layout, job: str, token: int) -> IO[bytes]:
    """The standard input of its process, in a session of its own: Ctrl-C does not reach it."""
    child = subprocess.Popen(
        [sys.executable, "-m", "worker.track", tracker, str(layout.root), job, str(token)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=settings.wandb_environment(layout.wandb_parent(job)),
        start_new_session=True,
    )
    # no daemon: a worker that ends waits for it, and it ends by itself
    threading.Thread(target=_watch, args=(child, tracker, layout, job), name=f"{tracker} of {job}").start()
    assert child.stdin is not None
    return child.stdin


def _watch(child: "subprocess.Popen[bytes]", tracker: str, layout: Layout, job: str) -> None:
    assert child.stderr is not None
    with child.stderr as lines:
        last = deque(lines, maxlen=1)
    code = child.wait()
    if code != 0:
        why = last[0].decode(errors="replace").strip() if last else f"it ended with {code}"
        warning = f"--track {tracker} does not follow this attempt any more: {why}"
        logger.warning("job %s: %s", job, warning)
        joblog.add(layout, job, warning)
