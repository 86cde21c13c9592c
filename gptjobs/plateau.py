"""Whether a loss stands still, by its numbers alone."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gptjobs.diagnosis import RISE

STANDS = 0.01
"""of the loss, by which it must fall over the last third of the numbers; else it stands still"""
FEW_LINES = 8
"""below which nothing is said about a course"""
FEW_EVALUATIONS = 12
"""below which nothing is said while a job goes on"""


def losses_stand_still(losses: Sequence[float]) -> tuple[float, float] | None:
    """The losses before the last third and at the end, where they differ by less than STANDS; None also of a loss that
    rises."""
    third, tenth = len(losses) // 3, max(3, len(losses) // 10)
    if len(losses) < FEW_LINES or third < tenth:
        return None
    before = statistics.median(losses[-third - tenth : -third])
    after = statistics.median(losses[-tenth:])
    return (before, after) if (1 - STANDS) * before < after < (1 + RISE) * before else None


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """The validation loss was `before` from about the step `since` on, and is `now` at `step`."""

    since: int
    step: int
    before: float
    now: float

    def __str__(self) -> str:
        return (
            f"the validation loss stands still: {self.before:.4f} around step {self.since}, "
            f"{self.now:.4f} around step {self.step}"
        )


class PlateauWatch:
    """Tells a plateau, evaluation by evaluation, once."""

    def __init__(self, *, is_told: bool = False) -> None:
        self._evaluations: list[tuple[int, float]] = []
        self._is_told = is_told

    def add(self, step: int, loss: float) -> Plateau | None:
        """Take an evaluation; a plateau, where this one shows it. A step that is evaluated again counts once."""
        if self._evaluations and step <= self._evaluations[-1][0]:
            return None
        self._evaluations.append((step, loss))
        if self._is_told or len(self._evaluations) < FEW_EVALUATIONS:
            return None
        found = losses_stand_still([each for _, each in self._evaluations])
        if found is None:
            return None
        self._is_told = True
        since = self._evaluations[-(len(self._evaluations) // 3) - 1][0]
        return Plateau(since=since, step=step, before=found[0], now=found[1])
