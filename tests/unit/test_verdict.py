"""Whether losses differ, and by how much."""

import random

from gptjobs.verdict import difference


def windows(seed: int, above: float = 0.0, spread: float = 0.0) -> list[float]:
    """Of 200 windows that are harder or easier by themselves, by more than any difference that is looked for."""
    hardness, noise = random.Random(0), random.Random(seed)
    return [2.0 + hardness.gauss(0, 0.5) + above + noise.gauss(0, spread) for _ in range(200)]


def test_the_same_losses_do_not_differ() -> None:
    found = difference([(windows(1), windows(1))])
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
    assert str(found).startswith("no difference seen: +0.0000")


def test_a_difference_far_smaller_than_that_between_windows_is_seen_with_its_sign() -> None:
    worse = difference([(windows(1, above=0.02, spread=0.01), windows(2, spread=0.01))])
    assert worse.is_seen and worse.low < 0.02 < worse.high
    better = difference([(windows(2, spread=0.01), windows(1, above=0.02, spread=0.01))])
    assert better.is_seen and better.mean < 0


def test_noise_alone_is_no_difference() -> None:
    seen = [difference([(windows(2 * n, spread=0.1), windows(2 * n + 1, spread=0.1))]).is_seen for n in range(60)]
    assert sum(seen) <= 8


def test_seeds_that_disagree_make_the_interval_wide() -> None:
    agree = [(windows(n, above=0.02, spread=0.01), windows(10 + n, spread=0.01)) for n in range(3)]
    by_seed = enumerate((0.2, -0.16, 0.02))
    disagree = [(windows(n, above=above, spread=0.01), windows(10 + n, spread=0.01)) for n, above in by_seed]
    assert difference(agree).is_seen
    assert not difference(disagree).is_seen
    assert difference(disagree).seeds == 3


def test_a_verdict_said_again_is_the_same() -> None:
    pair = [(windows(1, spread=0.1), windows(2, spread=0.1))]
    assert difference(pair) == difference(pair)
