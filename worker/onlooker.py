"""Looks on while a trainer trains: does it slow down, does its memory grow, does its loss stand still? Tells it, the
first two with what the host is like.

In a thread of its own: what it asks the host takes seconds, and the supervisor's leash does not wait.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gptjobs import checkpoint, history, progress
from gptjobs.config import Plan
from gptjobs.history import History
from gptjobs.layout import Layout
from gptjobs.plateau import Plateau, PlateauWatch
from gptjobs.progress import MEMORY_GROWTH, PLATEAU, SLOWDOWN, Alert, Line, Progress
from gptjobs.slowdown import Slowdown, SpeedWatch
from worker import conditions
from worker.growth import Growth, GrowthWatch

MEMORY_LOOK_S = 10.0
CLOSE_LIMIT_S = 5.0
"""for an alert that is being told when the trainer ends"""

logger = logging.getLogger(__name__)


class Onlooker:
    """`tell` gets each alert; `stop` is called, after that of memory that grows, with it in words."""

    def __init__(
        self, speed: SpeedWatch, losses: PlateauWatch, tell: Callable[[Alert], None], stop: Callable[[str], None]
    ) -> None:
        self._speed, self._losses, self._tell, self._stop = speed, losses, tell, stop
        self._growth = GrowthWatch()
        self._step: int | None = None
        self._seen: queue.SimpleQueue[Slowdown | Plateau | None] = queue.SimpleQueue()

    def note(self, line: Line) -> None:
        """Take a line of the trainer, in the supervisor's thread."""
        if isinstance(line, Progress):
            self._step = line.step
            if slow := self._speed.add(line):
                self._seen.put(slow)
            if line.val_loss is not None and (plateau := self._losses.add(line.step, line.val_loss)):
                self._seen.put(plateau)

    @contextmanager
    def looking_at(self, trainer: int) -> Iterator[None]:
        """While the supervisor runs the process `trainer`."""
        thread = threading.Thread(target=self._look_on, args=(trainer,), name=f"onlooker of {trainer}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._seen.put(None)
            thread.join(CLOSE_LIMIT_S)

    def _look_on(self, trainer: int) -> None:
        try:
            while True:
                try:
                    seen = self._seen.get(timeout=MEMORY_LOOK_S)
                except queue.Empty:
                    self._look_at_memory(trainer)
                    continue
                if seen is None:
                    return
                if isinstance(seen, Plateau):
                    self._tell(Alert(name=PLATEAU, step=seen.step, since=seen.since, reason=str(seen), loss=seen.now))
                else:
                    self._tell_slowdown(seen, trainer)
        except Exception:  # the edge of a thread: without it training goes on as well
            logger.exception("nobody looks on at process %d any more", trainer)

    def _tell_slowdown(self, slow: Slowdown, trainer: int) -> None:
        host = conditions.condition(trainer)
        reason = f"{slow}; the host: {conditions.in_words(host)}"
        self._tell(
            Alert(
                name=SLOWDOWN, step=slow.step, reason=reason, tokens_per_s=round(slow.now, 1),
                usual_tokens_per_s=round(slow.usual, 1), host=host,
            )
        )  # fmt: skip

    def _look_at_memory(self, trainer: int) -> None:
        """From the first line of progress on: loading is no growth."""
        if self._step is None or (memory := conditions.memory_of(trainer)) is None:
            return
        grown = self._growth.add(time.monotonic(), memory, conditions.available_part())
        if grown is not None:
            self._tell_growth(grown, self._step, trainer)

    def _tell_growth(self, grown: Growth, step: int, trainer: int) -> None:
        host = conditions.condition(trainer)
        self._tell(Alert(name=MEMORY_GROWTH, step=step, reason=str(grown), host=host))
        self._stop(str(grown))


def taught_speed(layout: Layout, plan: Plan, device: str) -> SpeedWatch:
    """That knows the job's first minutes on such a device, as far as lines of earlier attempts are on record."""
    made = SpeedWatch(plan.settled.train.log_interval)
    for each in checkpoint.attempts(layout, plan.job):
        if each.kind_of_device != device.partition(":")[0] or made.knows_usual:
            continue
        made.begin()
        for line in history.attempt_lines(layout, plan.job, each.token)[0]:
            decoded = progress.from_record(line)
            if isinstance(decoded, Progress):
                made.add(decoded)
    made.begin()
    return made


def taught_losses(layout: Layout, plan: Plan) -> PlateauWatch:
    """That knows the job's evaluations so far, and whether a plateau was told."""
    past = History(layout, plan.job).read()
    made = PlateauWatch(is_told=any(each.get("name") == PLATEAU for each in past.events))
    for line in past.metrics:
        if line["val_loss"] is not None:
            made.add(line["step"], line["val_loss"])
    return made
