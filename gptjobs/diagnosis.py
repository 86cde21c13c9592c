"""What is wrong with training, by its reported numbers alone. The formulas and how often they err: docs/spikes.md."""

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

LEVEL_STEPS = 25
"""whose median is the level of the loss"""
NOISE_STEPS = 40
"""whose distances from the level are its noise"""
RECENT_STEPS = 10
"""whose median is where the loss is now"""
NOISES = 5.0
RISE = 0.05
"""A spike is so many noises, and at least this part of the lowest level, above it."""
FALL = 0.6
"""A fall is so many noises, and at least this part of the level before, below it."""
OUTLIER_NOISES = 6.0
OUTLIER = 0.1
"""An outlier is so many noises, and at least this part of the level, from it."""
OUTLIER_NORM = 10.0
"""or where the gradient's norm is so many times its median"""
NORM_NOISES = 8.0
"""and so many noises above it, on a scale of logarithms, as small batches make it spread"""
NOT_FINITE_STEPS = 10
"""in a row, without a number, are a spike"""
LEFT_OUT_STEPS = 100
"""in a row, whose updates were left out, are a spike: the weights are what is wrong"""
_LARGEST_LOGARITHM = 700.0
"""of a number that there is"""
_OF_NORMAL = 1.4826
"""the standard deviation of a normal distribution over its median distance from the median"""


@dataclass(frozen=True, kw_only=True)
class Spike:
    """The loss rose and stayed up, or fell at once, which text that repeats itself makes it do. `since` is the first
    step of it, `level` the loss before, `now` that of the newest steps; either may be infinite, where there was no
    number."""

    since: int
    step: int
    level: float
    now: float
    is_fall: bool = False
    left_out: int = 0
    """updates in a row, where that is what was seen"""

    def __str__(self) -> str:
        if math.isinf(self.now):
            return f"the loss or the gradient is no finite number from step {self.since} on"
        if self.left_out:
            return f"{self.left_out} updates in a row were left out from step {self.since} on, as their losses were odd"
        verb = "fell" if self.is_fall else "rose"
        return (
            f"the loss {verb} from {self.level:.4f} to {self.now:.4f} from step {self.since} on "
            f"(medians of {LEVEL_STEPS} and {RECENT_STEPS} steps)"
        )


@dataclass(frozen=True, kw_only=True)
class Band:
    """What a single step's loss and gradient norm are expected in, from `low` to `high`, and up to `norm`."""

    low: float
    high: float
    norm: float

    def holds(self, loss: float, norm: float) -> bool:
        return self.low <= loss <= self.high and norm <= self.norm


class Detector:
    """Tells a sustained spike, step by step. A spike is where the median of the newest steps is above the lowest level
    there has been by NOISES jitters and by RISE of that level, or below the level a few steps before by NOISES noises
    and FALL of it. All are medians, which single outliers do not move. A step whose update was left out says nothing
    about the weights: it only counts as one of a row."""

    def __init__(self) -> None:
        self._losses: deque[tuple[int, float]] = deque(maxlen=NOISE_STEPS)
        self._norms: deque[float] = deque(maxlen=NOISE_STEPS)
        self._lowest = math.inf
        self._noise = 0.0
        self._not_finite: list[int] = []
        """steps in a row without a number"""
        self._left_out: list[tuple[int, float]] = []
        """steps in a row whose updates were left out, with their losses"""
        self.limits: Band | None = None
        """the band that updates are left out by; it changes at fixed steps alone, so that a resumed job has the same"""

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "losses": [*self._losses], "norms": [*self._norms], "lowest": self._lowest, "noise": self._noise,
            "not_finite": [*self._not_finite], "left_out": [*self._left_out],
            "limits": asdict(self.limits) if self.limits else None,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Detector":
        made = cls()
        made._losses.extend((step, loss) for step, loss in record["losses"])
        made._norms.extend(record.get("norms", ()))
        made._not_finite = [*record.get("not_finite", ())]
        made._left_out = [(step, loss) for step, loss in record.get("left_out", ())]
        made.limits = Band(**record["limits"]) if record.get("limits") else None
        made._lowest, made._noise = record["lowest"], record["noise"]
        return made

    def add(self, step: int, loss: float, norm: float = 0.0, *, left_out: bool = False) -> Spike | None:
        """Take the loss and the gradient's norm of a step; a spike, where this step shows it."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._not_finite.append(step)
            if len(self._not_finite) < NOT_FINITE_STEPS:
                return None
            return Spike(since=self._not_finite[0], step=step, level=self._lowest, now=math.inf)
        self._not_finite.clear()
        if left_out:
            self._left_out.append((step, loss))
            count = len(self._left_out)
            if count < LEFT_OUT_STEPS:
                return None
            now = statistics.median(loss for _, loss in self._left_out)
            return Spike(since=self._left_out[0][0], step=step, level=self._lowest, now=now, left_out=count)
        self._left_out.clear()
        self._losses.append((step, loss))
        self._norms.append(norm)
        if len(self._losses) < NOISE_STEPS:
            return None
        losses = [each for _, each in self._losses]
        now = statistics.median(losses[-RECENT_STEPS:])
        if now > self._lowest + self._margin:
            since = self._since(lambda loss: loss > self._lowest + self._margin / 2)
            return Spike(since=since, step=step, level=self._lowest, now=now)
        before = losses[:LEVEL_STEPS]
        level = statistics.median(before)
        margin = max(NOISES * noise(before), FALL * level)
        if now < level - margin:
            since = self._since(lambda loss: loss < level - margin / 2)
            return Spike(since=since, step=step, level=level, now=now, is_fall=True)
        level = statistics.median(losses[-LEVEL_STEPS:])
        if level < self._lowest:
            self._lowest, self._noise = level, jitter(losses)
        return None

    def band(self) -> Band | None:
        """For the step after the newest; None while it still learns."""
        if len(self._losses) < NOISE_STEPS:
            return None
        losses = [each for _, each in self._losses]
        level = statistics.median(losses[-LEVEL_STEPS:])
        margin = max(OUTLIER_NOISES * noise(losses), OUTLIER * level)
        return Band(low=level - margin, high=level + margin, norm=self._norm_limit())

    def _norm_limit(self) -> float:
        logarithms = [math.log(each) for each in self._norms if each > 0]
        if len(logarithms) < LEVEL_STEPS:
            return math.inf
        margin = max(math.log(OUTLIER_NORM), NORM_NOISES * noise(logarithms))
        return math.exp(min(statistics.median(logarithms) + margin, _LARGEST_LOGARITHM))

    @property
    def _margin(self) -> float:
        return max(NOISES * self._noise, RISE * self._lowest)

    def _since(self, is_off: Callable[[float], bool]) -> int:
        """The first of the newest steps, without a gap of two, whose losses are off."""
        since, others = self._losses[-1][0], 0
        for step, loss in reversed(self._losses):
            if is_off(loss):
                since, others = step, 0
            elif (others := others + 1) > 1:
                break
        return since


def jitter(losses: Sequence[float]) -> float:
    """The same by the differences of neighbours, which a trend does not add to (von Neumann 1941)."""
    differences = [abs(one - other) for one, other in pairwise(losses)]
    return _OF_NORMAL * statistics.median(differences) / math.sqrt(2)


def noise(losses: Sequence[float]) -> float:
    """The standard deviation, if they are normal, which single outliers do not move."""
    middle = statistics.median(losses)
    return _OF_NORMAL * statistics.median(abs(each - middle) for each in losses)
