"""Whether a trainer's memory grows without end, by looks at it alone: docs/slowdown.md."""

from dataclasses import dataclass

SETTLE_S = 180.0
"""of training, in which caches fill"""
WINDOW_S = 60.0
"""whose lowest look counts: what a save or an evaluation takes, it gives back"""
RISES = 5
"""windows in a row, each with a lowest look above that of the one before"""
GROWN_PART = 1.5
GROWN_BYTES = 1 << 30
"""The memory is so many times what it was after settling, and so much more,"""
SCARCE_PART = 0.1
SCARCE_GROWN_PART = 1.1
"""or so many times, and the host has less than this part of its own left."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Bytes after settling, and now."""

    settled: int
    now: int
    available_part: float

    def __str__(self) -> str:
        return (
            f"its memory grew without end, from {gigabytes(self.settled)} to {gigabytes(self.now)}, with "
            f"{self.available_part:.0%} of the host's left"
        )


def gigabytes(count: float) -> str:
    return f"{count / (1 << 30):.1f} GiB"


class GrowthWatch:
    """Tells it once, look by look."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._window: int | None = None
        self._lowest = 0
        """of the window that goes on"""
        self._settled: int | None = None
        self._last_low = 0
        self._rises = 0
        self._is_told = False

    def add(self, now: float, memory: int, available_part: float) -> Growth | None:
        """Take a look at monotonic seconds `now`: the trainer's bytes, and the part of the host's that is available."""
        self._began = now if self._began is None else self._began
        since = now - self._began - SETTLE_S
        if since < 0:
            return None
        window, before = int(since // WINDOW_S), self._window
        if window == before:
            self._lowest = min(self._lowest, memory)
            return None
        low, self._window, self._lowest = self._lowest, window, memory
        return None if before is None else self._judge(low, available_part)

    def _judge(self, low: int, available_part: float) -> Growth | None:
        """Of a window that is over, by its lowest look."""
        if self._settled is None:
            self._settled = self._last_low = low
            return None
        self._rises = self._rises + 1 if low > self._last_low else 0
        self._last_low = low
        is_large = low >= max(GROWN_PART * self._settled, self._settled + GROWN_BYTES)
        is_scarce = available_part < SCARCE_PART and low >= SCARCE_GROWN_PART * self._settled
        if self._is_told or self._rises < RISES or not (is_large or is_scarce):
            return None
        self._is_told = True
        return Growth(settled=self._settled, now=low, available_part=available_part)
