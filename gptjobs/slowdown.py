"""Whether a job trains slower than in its own first minutes, by its lines of progress alone: docs/slowdown.md."""

import statistics
from dataclasses import dataclass

from gptjobs.progress import Progress, duration

LOOK_S = 30.0
"""of training at least, whose mean speed is one look"""
FIRST_LOOKS = 6
"""whose median is the job's usual speed: the slow steps that a job begins with do not move it"""
SLOW_PART = 0.7
"""of the usual speed: a look below it is slow"""
SLOW_S = 600.0
"""of training in slow looks alone, after which it is told"""
SLOW_LOOKS = 3
"""at least: of a large model a single step may take minutes"""


@dataclass(frozen=True, kw_only=True)
class Slowdown:
    """For `seconds` of training, up to `step`, the job had `now` tokens/s, and `usual` ones in its first minutes."""

    step: int
    seconds: float
    usual: float
    now: float

    def __str__(self) -> str:
        return (
            f"training is slow: {self.now:,.0f} tokens/s for {duration(self.seconds)}, "
            f"{self.now / self.usual:.0%} of the {self.usual:,.0f} of the job's first minutes"
        )


class SpeedWatch:
    """Tells a slowdown, line by line, once until it is over. Its time is that in which steps were made, as the lines
    tell it: evaluations, saves and a host that slept are no slow training, and lines on record teach like new ones."""

    def __init__(self, log_interval: int) -> None:
        self._log_interval = log_interval
        self._first: list[float] = []
        self.begin()

    @property
    def knows_usual(self) -> bool:
        return len(self._first) >= FIRST_LOOKS

    def begin(self) -> None:
        """An attempt begins: what the one before it was slow by does not count."""
        self._interval_from: int | None = None
        """the tokens at which the mean of the newest lines began"""
        self._interval_s = 0.0
        self._last_tokens = 0
        self._is_told = False
        self._look_s, self._look_tokens = 0.0, 0
        self._forget_slow()

    def _forget_slow(self) -> None:
        self._slow_s, self._slow_tokens, self._slow_looks = 0.0, 0.0, 0

    def add(self, line: Progress) -> Slowdown | None:
        """Take a line; a slowdown, where this line shows it."""
        if not line.tokens_per_s:
            return None
        if self._interval_from is None:
            self._interval_from = self._last_tokens = line.tokens
            return None
        # the speed of a line is the mean since its interval began: what is new in it is the difference
        seconds = (line.tokens - self._interval_from) / line.tokens_per_s
        self._look_s += seconds - self._interval_s
        self._look_tokens += line.tokens - self._last_tokens
        self._interval_s, self._last_tokens = seconds, line.tokens
        if line.step % self._log_interval == 0:
            self._interval_from, self._interval_s = line.tokens, 0.0
        if self._look_s < LOOK_S:
            return None
        seconds, speed = self._look_s, self._look_tokens / self._look_s
        self._look_s, self._look_tokens = 0.0, 0
        return self._judge(line.step, seconds, speed)

    def _judge(self, step: int, seconds: float, speed: float) -> Slowdown | None:
        if not self.knows_usual:
            self._first.append(speed)
            return None
        usual = statistics.median(self._first)
        if speed >= SLOW_PART * usual:
            self._is_told = False
            self._forget_slow()
            return None
        self._slow_s += seconds
        self._slow_tokens += speed * seconds
        self._slow_looks += 1
        if self._is_told or self._slow_s < SLOW_S or self._slow_looks < SLOW_LOOKS:
            return None
        self._is_told = True
        return Slowdown(step=step, seconds=self._slow_s, usual=usual, now=self._slow_tokens / self._slow_s)
