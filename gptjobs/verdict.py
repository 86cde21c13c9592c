"""Whether two jobs' losses differ: the difference on the same held-out windows, with an interval.

Jobs that were evaluated on the same windows are compared window by window, which takes out what makes one window
harder than another (paired bootstrap, Efron & Tibshirani 1993; Koehn 2004 for models of language).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 1000
CONFIDENCE = 0.95
_SEED = 1337
"""of the resampling, so that a verdict said again is the same"""

Windows = Sequence[float]
"""the loss of each held-out window, or of each group of them, in nats a token"""


@dataclass(frozen=True)
class Difference:
    """By how much one loss is above another, in nats a token: the mean, and where it lies by the bootstrap."""

    mean: float
    low: float
    high: float
    seeds: int
    """pairs of jobs that were compared, each of a seed of its own"""

    @property
    def is_seen(self) -> bool:
        """Whether the interval does not hold 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        interval = f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        return interval if self.is_seen else f"no difference seen: {interval}"


def difference(pairs: Sequence[tuple[Windows, Windows]]) -> Difference:
    """Of the first of each pair from the second, over pairs of the same seed: seeds and windows are both drawn again,
    with replacement. A pair's two must be of the same windows."""
    deltas = [[one - other for one, other in zip(first, second, strict=True)] for first, second in pairs]
    draw = random.Random(_SEED)
    count = len(deltas[0])
    means = []
    for _ in range(RESAMPLES):
        windows = draw.choices(range(count), k=count)
        chosen = draw.choices(deltas, k=len(deltas)) if len(deltas) > 1 else deltas
        means.append(sum(each[window] for each in chosen for window in windows) / (count * len(chosen)))
    means.sort()
    outside = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    mean = sum(map(sum, deltas)) / (count * len(deltas))
    return Difference(mean, means[outside], means[-1 - outside], len(deltas))
