"""What is wrong with training, by its reported numbers alone. The formulas and how often they err: docs/spikes.md."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEVEL_STEPS = 25
"""whose median is the level of the loss"""
NOISE_STEPS = 40
"""whose distances from the level are its noise"""
RECENT_STEPS = 10
"""whose median is where the loss is now"""
NOISES = 5.0
PART = 0.05
"""A spike is so many noises, and at least this part of the lowest level, above it."""
_OF_NORMAL = 1.4826
"""the standard deviation of a normal distribution over its median distance from the median"""


@dataclass(frozen=True, kw_only=True)
class Spike:
    """The loss rose and stayed up. `since` is the first step of it, `level` the loss before, `now` that of the newest
    steps."""

    since: int
    step: int
    level: float
    now: float

    def __str__(self) -> str:
        return (
            f"the loss rose from {self.level:.4f} to {self.now:.4f} from step {self.since} on "
            f"(medians of {LEVEL_STEPS} and {RECENT_STEPS} steps)"
        )


class Detector:
    """Tells a sustained spike, step by step. A spike is where the median of the newest steps is above the lowest level
    there has been by NOISES noises and by PART of that level; both are medians, which single outliers do not move."""

    def __init__(self) -> None:
        self._losses: deque[tuple[int, float]] = deque(maxlen=NOISE_STEPS)
        self._lowest = math.inf
        self._noise = 0.0

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"losses": [*self._losses], "lowest": self._lowest, "noise": self._noise}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Detector":
        made = cls()
        made._losses.extend((step, loss) for step, loss in record["losses"])
        made._lowest, made._noise = record["lowest"], record["noise"]
        return made

    def add(self, step: int, loss: float) -> Spike | None:
        """Take the loss of a step; a spike, where this step shows it. One that is not finite is as high as can be."""
        self._losses.append((step, loss if math.isfinite(loss) else math.inf))
        if len(self._losses) < NOISE_STEPS:
            return None
        losses = [each for _, each in self._losses]
        now = statistics.median(losses[-RECENT_STEPS:])
        if now > self._lowest + self._margin:
            return Spike(since=self._since(), step=step, level=self._lowest, now=now)
        level = statistics.median(losses[-LEVEL_STEPS:])
        if level < self._lowest:
            self._lowest = level
            middle = statistics.median(losses)
            self._noise = _OF_NORMAL * statistics.median(abs(each - middle) for each in losses)
        return None

    @property
    def _margin(self) -> float:
        return max(NOISES * self._noise, PART * self._lowest)

    def _since(self) -> int:
        """The first of the steps, without a gap of two, that are above by half of the margin."""
        since, below = self._losses[-1][0], 0
        for step, loss in reversed(self._losses):
            if loss > self._lowest + self._margin / 2:
                since, below = step, 0
            elif (below := below + 1) > 1:
                break
        return since
