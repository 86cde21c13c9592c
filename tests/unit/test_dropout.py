"""Masks of dropout: a function of the seed, the step, the place of the window and the site, and of nothing else."""

import hashlib
from typing import Any

import pytest
import torch
from torch import Tensor

from worker.trainer.dropout import Dropout

WINDOWS, SHAPE = 6, (4, 32, 32)


def dropout(*, part: float = 0.25, seed: int = 1, step: int = 7, first: int = 0, windows: int = WINDOWS) -> Dropout:
    places = range(first, first + windows)
    return Dropout.drawn(part, seed=seed, step=step, places=places, sites=5, device=torch.device("cpu"))


def kept(site: int = 3, **values: Any) -> Tensor:
    """Which elements are kept, of windows of ones."""
    drawn = dropout(**values)
    return drawn.apply(torch.ones(drawn.keys.shape[1], *SHAPE), site) != 0


@pytest.mark.parametrize("part", [0.1, 0.25, 0.5, 0.9])
def test_as_large_a_part_is_dropped_as_was_asked_and_the_mean_stays(part: float) -> None:
    mask = kept(part=part).double()
    deviation = (part * (1 - part) / mask.numel()) ** 0.5
    assert abs(mask.mean() - (1 - part)) < 4 * deviation
    scaled = dropout(part=part).apply(torch.ones(WINDOWS, *SHAPE), 3)
    assert scaled.max().item() == pytest.approx(1 / (1 - part))


def test_a_part_of_the_windows_has_the_masks_that_it_has_in_the_whole() -> None:
    assert torch.equal(kept(first=4, windows=2), kept()[4:])


@pytest.mark.parametrize("other", [{"seed": 2}, {"step": 8}, {"site": 4}, {"first": 1}])
def test_another_seed_step_site_or_place_draws_independently(other: dict[str, int]) -> None:
    one, two = kept().double().flatten(), kept(**other).double().flatten()
    assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 4 / len(one) ** 0.5


def test_neighbours_are_dropped_independently_in_every_direction() -> None:
    mask = kept().double() - 0.75
    for axis in range(mask.dim()):
        one, two = mask.narrow(axis, 0, mask.shape[axis] - 1), mask.narrow(axis, 1, mask.shape[axis] - 1)
        assert abs((one * two).mean() / (0.25 * 0.75)) < 4 / one.numel() ** 0.5


def test_no_random_state_is_read_or_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = kept()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(kept(), first)


def test_masks_stay_what_they_were_in_earlier_versions() -> None:
    """A job that is resumed under a later version draws as before."""
    bits = bytes(kept().flatten().to(torch.uint8).tolist())
    assert hashlib.sha256(bits).hexdigest() == "6ca3bc12bdfc236342db95bf427a7c91abc1a62d673711a3a2f2d06f316d78df"
