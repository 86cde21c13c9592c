"""When a worker takes jobs: hours as a user types them, read off a clock on the wall."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptjobs import hours
from gptjobs.errors import UsageError
from gptjobs.hours import Hours

MINUTES = 24 * 60


def clock(hour: int, minute: int = 0) -> time.struct_time:
    return time.struct_time((2026, 11, 28, hour, minute, 0, 5, 332, 0))


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("22-8", [(22, 0), (23, 59), (0, 0), (7, 59)], [(8, 0), (12, 0), (21, 59)]),
        ("22:30-8:15", [(22, 30), (3, 0), (8, 14)], [(8, 15), (22, 29)]),
        ("9-17", [(9, 0), (16, 59)], [(8, 59), (17, 0), (0, 0)]),
        ("18-24", [(18, 0), (23, 59)], [(0, 0), (17, 59)]),
        ("0-6", [(0, 0), (5, 59)], [(6, 0), (23, 59)]),
    ],
)
def test_hours_begin_with_their_first_minute_and_end_before_their_last(
    text: str, inside: list[tuple[int, int]], outside: list[tuple[int, int]]
) -> None:
    found = hours.parse(text)
    assert all(found.contain(clock(*each)) for each in inside)
    assert not any(found.contain(clock(*each)) for each in outside)


@given(st.integers(0, MINUTES - 1), st.integers(0, MINUTES - 1))
def test_hours_and_those_that_remain_of_the_day_share_no_minute(begin: int, end: int) -> None:
    if begin == end:
        return
    these, others = Hours(begin=begin, end=end), Hours(begin=end, end=begin)
    inside = [these.contain(clock(*divmod(minute, 60))) for minute in range(MINUTES)]
    assert inside == [not others.contain(clock(*divmod(minute, 60))) for minute in range(MINUTES)]
    assert sum(inside) == (end - begin) % MINUTES


@given(st.integers(0, MINUTES - 1), st.integers(0, MINUTES - 1))
def test_hours_are_written_as_they_are_read(begin: int, end: int) -> None:
    if begin != end:
        made = Hours(begin=begin, end=end)
        assert hours.parse(str(made)) == made


@pytest.mark.parametrize(
    "text", ["", "22", "8-", "25-8", "24:30-8", "8-9-10", "8:60-9", "eight-nine", "8.5-9", "9-9", "0-24"]
)
def test_what_are_no_hours_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as error:
        hours.parse(text)
    assert "--hours" in (error.value.hint or "")
