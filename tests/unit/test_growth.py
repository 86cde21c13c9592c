"""Memory that grows without end, and memory that does not."""

import random
from collections.abc import Callable

import pytest

from worker.growth import GROWN_BYTES, RISES, SETTLE_S, WINDOW_S, Growth, GrowthWatch

LOOK_S = 10.0
GB = 1 << 30
EARLIEST_S = SETTLE_S + (1 + RISES) * WINDOW_S
HOURS = 6 * 3600.0


def told(
    memory: Callable[[float], float], seconds: float = HOURS, available: float = 0.5
) -> list[tuple[float, Growth]]:
    """When, and what, of a trainer whose memory at each second is known."""
    watch, found = GrowthWatch(), []
    for number in range(int(seconds / LOOK_S)):
        now = number * LOOK_S
        if growth := watch.add(1000.0 + now, int(memory(now)), available):
            found.append((now, growth))
    return found


def noise(size: float) -> Callable[[float], float]:
    drawn = random.Random(7)
    return lambda now: size * drawn.random()


ONE_JUMP_S = 3600.0
NOISE = noise(3 * GB)
HARMLESS = {
    "steady": lambda now: 4 * GB,
    "noisy": lambda now: 2 * GB + NOISE(now),
    "of saves that take twice as much": lambda now: 4 * GB + (6 * GB if now % 300 < 45 else 0),
    "of saves that give back slowly": lambda now: 4 * GB + 4 * GB * max(0.0, 1 - (now % 900) / 450),
    "with one jump": lambda now: 4 * GB if now < ONE_JUMP_S else 9 * GB,
    "of caches that fill within minutes": lambda now: GB + 3 * GB * min(1.0, now / SETTLE_S),
    "small": lambda now: 100 * 1e6 + now * 1e6 / 60,
}


@pytest.mark.parametrize("series", HARMLESS, ids=str)
def test_memory_that_does_not_grow_without_end_is_not_told(series: str) -> None:
    seconds = HOURS if series != "small" else 900 * 60.0
    assert told(HARMLESS[series], seconds) == []


@pytest.mark.parametrize("per_minute", [16e6, 64e6, 512e6])
def test_a_steady_leak_is_told_once_when_it_is_a_half_and_a_gigabyte_more(per_minute: float) -> None:
    ((at, growth),) = told(lambda now: GB + per_minute * now / 60)
    assert growth.now >= max(1.5 * growth.settled, growth.settled + GROWN_BYTES)
    needed = (growth.settled + GROWN_BYTES - GB) / per_minute * 60
    assert max(EARLIEST_S, needed) <= at <= max(EARLIEST_S, needed) + 2 * WINDOW_S + LOOK_S
    assert str(growth).startswith(f"its memory grew without end, from {growth.settled / GB:.1f} GiB to ")


def test_a_leak_under_noise_and_saves_is_told() -> None:
    of = noise(2e6)
    found = told(lambda now: 4 * GB + 50e6 * now / 60 + of(now) + (4 * GB if now % 300 < 45 else 0))
    assert len(found) == 1


def test_a_growth_that_ends_before_is_not_told() -> None:
    assert told(lambda now: 4 * GB + min(1.4 * GB, 20e6 * now / 60)) == []


def test_where_little_is_left_a_tenth_more_is_enough() -> None:
    leak = lambda now: 8 * GB + 100e6 * now / 60  # noqa: E731
    ((scarce, _),), ((plenty, _),) = told(leak, available=0.09), told(leak, available=0.11)
    assert scarce < plenty
    assert told(lambda now: 8 * GB, available=0.01) == []
    assert told(HARMLESS["noisy"], available=0.01) == []
