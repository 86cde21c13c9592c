"""From windows' scores to ranges of odd ones: where they begin and end, and in what they are odd."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]

LIMIT = 10.0
"""robust noises from the median: an odd window"""
CARRY = 7.0
"""robust noises: a window that carries on what is odd beside it (two thresholds, as Canny 1986 follows edges)"""
SUPPORT = 5.0
"""robust noises: a further reason"""
FLOORS = {
    "compression": 0.03, "no_text": 0.002, "repeated": 0.085, "copied": 0.095, "tokens": 0.1, "byte_pairs": 0.1,
    "script": 0.1, "line": 0.5, "loss": 0.1,
}  # fmt: skip
"""The least noise that is assumed of a measure, in its own unit (of lines: doublings): text that is the same all over
has none, and nothing would be normal in it."""
LEAST_WINDOWS = {"copied": 4}
"""in a row: any text quotes itself"""
MOST = 1000
"""anomalies that are told of a file, the worst"""
_STEPS = 8
"""parts of a window in which the ends of a range are sought"""

SIDES = [
    ("no_text", 1, "no-text"), ("compression", -1, "repetition"), ("compression", 1, "noise"),
    ("repeated", 1, "repetition"), ("copied", 1, "copied"), ("tokens", 1, "tokens"), ("byte_pairs", 1, "language"),
    ("script", 1, "script"), ("line", 1, "long-line"), ("loss", 1, "loss"), ("loss", -1, "loss"),
]  # fmt: skip
"""The measures, the side on which each is odd, and of which kind of gptjobs.data.inspect.KINDS that is."""


@dataclass(frozen=True)
class Level:
    """What a measure is in the file."""

    median: float
    noise: float
    """1.4826 times the median distance from the median, which is a normal distribution's standard deviation (Rousseeuw
    & Croux 1993); FLOORS at least"""
    is_doubling: bool

    def strengths(self, values: Scores) -> Scores:
        """In noises above the median."""
        return (_scaled(values, self.is_doubling) - _scaled(np.float32(self.median), self.is_doubling)) / self.noise


def level_of(name: str, values: Scores) -> Level:
    is_doubling = name == "line"
    scaled = _scaled(values, is_doubling)
    distance = np.abs(scaled - np.median(scaled))
    return Level(float(np.median(values)), max(1.4826 * float(np.median(distance)), FLOORS[name]), is_doubling)


def _scaled(values: Scores | np.float32, is_doubling: bool) -> Scores:
    return np.log2(np.maximum(values, 1)) if is_doubling else np.asarray(values)


@dataclass(frozen=True)
class Range:
    """Windows `first` to before `last` that are odd, most of all in one measure, on one side of the median."""

    first: int
    last: int
    score: float
    """the strength of its oddest window"""
    measure: str
    side: int


def ranges(scores: Mapping[str, Scores], levels: Mapping[str, Level]) -> list[Range]:
    """The worst first. Where measures name ranges that overlap, the one that is odd by more in all stands for those
    that lie in it by half or more."""
    found = []
    for name, side, _ in SIDES:
        if name in scores:
            strengths = side * levels[name].strengths(scores[name])
            for first, last in _runs(strengths, LEAST_WINDOWS.get(name, 1)):
                here = strengths[first:last]
                found.append((float(here.sum()), Range(first, last, float(here.max()), name, side)))
    kept: list[Range] = []
    owner = np.full(len(next(iter(scores.values()))), -1)
    for _, each in sorted(found, key=lambda one: -one[0]):
        owners = owner[each.first : each.last]
        if 2 * np.count_nonzero(owners >= 0) >= len(owners):
            main = int(owners[owners >= 0][0])
            kept[main] = replace(kept[main], score=max(kept[main].score, each.score))
        else:
            owners[owners < 0] = len(kept)
            kept.append(each)
    return sorted(kept, key=lambda each: (-each.score, each.first))[:MOST]


def _runs(strengths: Scores, least: int) -> Iterator[tuple[int, int]]:
    """Stretches of CARRY that reach LIMIT somewhere; one window within may be below. The ends are cut back to where
    they have half of what the stretch has."""
    supported = strengths >= CARRY
    supported[1:-1] |= supported[:-2] & supported[2:]
    turns = np.flatnonzero(np.diff(np.concatenate([[False], supported, [False]])))
    for first, last in turns.reshape(-1, 2):
        stretch = strengths[first:last]
        if stretch.max() >= LIMIT:
            (full,) = np.nonzero(stretch >= np.median(stretch[stretch >= CARRY]) / 2)
            if full[-1] + 1 - full[0] >= least:
                yield int(first + full[0]), int(first + full[-1] + 1)


Measure = Callable[[int], float]
"""of the window of as many tokens as all that begins at this one"""


def ends(found: Range, values: Scores, starts: NDArray[np.int64], window: int, measure: Measure) -> tuple[int, int]:
    """The tokens at which a range begins and ends. A window that lies in it by half has half of what it is odd in: so
    windows at steps of a part of one are measured around each end, and the end is the middle of the first that is more
    odd than not."""
    token_count = int(starts[-1]) + window
    first, last = int(starts[found.first]), int(starts[found.last - 1]) + window
    inside = float(np.median(values[found.first : found.last]))
    outside_before, outside_after = values[max(0, found.first - 5) : found.first], values[found.last : found.last + 5]
    if len(outside_before):
        first = _end(first, -1, (inside + float(np.median(outside_before))) / 2, inside, token_count, window, measure)
    if len(outside_after):
        last = _end(last, 1, (inside + float(np.median(outside_after))) / 2, inside, token_count, window, measure)
    return first, last


def _end(near: int, direction: int, half: float, inside: float, token_count: int, window: int, measure: Measure) -> int:
    """Where the range ends near this token: below it for `direction` -1, above for 1."""
    step = max(1, window // _STEPS)
    centres = near + direction * step * np.arange(-_STEPS, _STEPS + 1)
    begins = np.clip(centres - window // 2, 0, token_count - window)
    is_odd = np.array([(measure(int(each)) > half) == (inside > half) for each in begins])
    # the cut that disagrees with the fewest: odd before it, going outwards, and none after
    fits = np.concatenate([[0], np.cumsum(is_odd)]) + np.concatenate([np.cumsum(~is_odd[::-1])[::-1], [0]])
    cut = int(np.flatnonzero(fits == fits.max())[-1])
    if cut == len(centres):
        return int(np.clip(centres[-1] + direction * step, 0, token_count))
    return int(np.clip(centres[cut] - direction * step // 2, 0, token_count))
