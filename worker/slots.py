"""The devices of a worker that are free, and who takes them."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

DRAIN_LOOK_S = 1.0


class Slots:
    """A job takes all that it trains on at once, so no two of them can wait for what the other has. Who came first is
    served first, so none that wants several is overtaken for ever."""

    def __init__(self, slots: Sequence[str]) -> None:
        self._order = slots
        self._free = list(slots)
        self._line: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def is_idle(self) -> bool:
        """Whether one is free that nobody waits for."""
        with self._changed:
            return bool(self._free) and not self._line

    @contextmanager
    def taken(self, count: int, drain: threading.Event) -> Iterator[str | None]:
        """So many slots, in one word (see `together`); None where the worker drained before they were free."""
        taken = self._take(count, drain)
        try:
            yield together(taken) if taken else None
        finally:
            with self._changed:
                self._free = sorted([*self._free, *taken], key=self._order.index)
                self._changed.notify_all()

    def _take(self, count: int, drain: threading.Event) -> list[str]:
        me = object()
        with self._changed:
            self._line.append(me)
            try:
                while self._line[0] is not me or not (taken := self._fitting(count)):
                    if drain.is_set():
                        return []
                    self._changed.wait(DRAIN_LOOK_S)
                for each in taken:
                    self._free.remove(each)
                return taken
            finally:
                self._line.remove(me)
                self._changed.notify_all()

    def _fitting(self, count: int) -> list[str]:
        """So many that are free, or none: different GPUs, first those that are shared least; slots of a CPU or of Metal
        are all alike."""
        by_number = ":" in self._order[0]
        free = sorted(dict.fromkeys(self._free), key=self._free.count, reverse=True) if by_number else self._free
        return free[:count] if len(free) >= count else []


def together(slots: Sequence[str]) -> str:
    """Slots of one kind in one word: cuda:0,1 for cuda:0 and cuda:1; cpu for cpu and cpu."""
    kind = slots[0].partition(":")[0]
    numbers = ",".join(number for each in slots if (number := each.partition(":")[2]))
    return f"{kind}:{numbers}" if numbers else kind
