"""The hours of a day within which a worker takes jobs: `22-8`, `22:30-8:15`; local time, over midnight too."""

import re
import time
from dataclasses import dataclass

from gptjobs.errors import UsageError

_HOURS = re.compile(r"(\d{1,2})(?::([0-5]\d))?-(\d{1,2})(?::([0-5]\d))?")
_MINUTES_A_DAY = 24 * 60


@dataclass(frozen=True, kw_only=True)
class Hours:
    """In minutes after midnight, on the clock on the wall: nothing is counted down, so neither summer time nor a
    clock that is set can do harm."""

    begin: int
    end: int

    def contain(self, now: time.struct_time) -> bool:
        minute = now.tm_hour * 60 + now.tm_min
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end

    def __str__(self) -> str:
        return f"{on_the_clock(self.begin)}-{on_the_clock(self.end)}"


def on_the_clock(minute: int) -> str:
    return f"{minute // 60}:{minute % 60:02}"


def parse(text: str) -> Hours:
    """Raises UsageError for what are no hours."""
    match = _HOURS.fullmatch(text.strip())
    hint = "--hours 22-8, or 22:30-8:15: from, to; local time"
    if match is None:
        raise UsageError(f"'{text}' are no hours", hint=hint)
    begin, end = (int(hour) * 60 + int(minute or 0) for hour, minute in (match.groups()[:2], match.groups()[2:]))
    if max(begin, end) > _MINUTES_A_DAY:
        raise UsageError(f"'{text}' are no hours: a day has 24", hint=hint)
    begin, end = begin % _MINUTES_A_DAY, end % _MINUTES_A_DAY
    if begin == end:
        raise UsageError(f"'{text}' begin when they end", hint="leave --hours out for all day")
    return Hours(begin=begin, end=end)
