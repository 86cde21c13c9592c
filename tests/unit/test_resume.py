"""How a resume begins, as it is settled and as the contract tells: the schedule switched, the optimizer kept, reset or
rewarmed, the place in the data kept or begun anew."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjobs.checkpoint import Manifest
from gptjobs.config import OF_RESUME, REWARM_STEPS, Given, Settled, TrainConfig, settle
from gptjobs.contract import in_words
from gptjobs.errors import UsageError
from tests.unit.conftest import NANO, manifest, typed
from tests.unit.test_contract import changes, resume

CONSTANT = settle(
    typed(model="nano", data="text.md", steps=400, block_size=64, learning_rate=1e-3, schedule="constant")
)
COSINE = settle(typed(model="nano", data="text.md", steps=400, block_size=64, learning_rate=1e-3, warmup_steps=20))


def resumed(parent: Settled, step: int = 200, **values: Any) -> Settled:
    return settle(typed(**values), parent=parent, parent_step=step)


def rates(settled: Settled, *steps: int) -> list[float]:
    return [settled.train.learning_rate_at(step) for step in steps]


def of(settled: Settled) -> Manifest:
    """A checkpoint of step 200 with these settings."""
    return manifest(settled=settled)


def cosine(part: float, low: float, high: float) -> float:
    return low + (high - low) * 0.5 * (1.0 + math.cos(math.pi * part))


@pytest.mark.parametrize("warmup", [0, 50])
def test_a_constant_rate_becomes_a_cosine_from_here_to_the_jobs_end(warmup: int) -> None:
    said = {"warmup_steps": warmup} if warmup else {}
    switched = resumed(CONSTANT, schedule="cosine", steps=850, **said)
    assert (switched.train.schedule_start, switched.train.decay_steps) == (200, 850)
    peak = 200 + warmup
    halfway = (peak + 1050) // 2
    assert rates(switched, peak, 1050, 5000) == [1e-3, pytest.approx(1e-4), pytest.approx(1e-4)]
    assert rates(switched, halfway) == [pytest.approx(cosine((halfway - peak) / (1050 - peak), 1e-4, 1e-3))]
    falling = rates(switched, *range(peak, 1050))
    assert all(later < earlier for earlier, later in pairwise(falling))
    if warmup:
        assert rates(switched, 200, 224, 249) == pytest.approx([1e-3 / 50, 5e-4, 1e-3])


def test_a_switched_schedule_is_gone_on_with_by_the_resume_after_it() -> None:
    switched = resumed(CONSTANT, schedule="cosine", warmup_steps=50)
    after = resumed(switched, step=300)
    assert rates(after, *range(300, 400)) == rates(switched, *range(300, 400))


@pytest.mark.parametrize("warmup", [0, 40])
def test_a_cosine_becomes_a_constant_rate_at_its_peak_from_here(warmup: int) -> None:
    said = {"warmup_steps": warmup} if warmup else {}
    switched = resumed(COSINE, schedule="constant", steps=1000, **said)
    assert rates(switched, 200 + warmup, 700, 1199) == [1e-3, 1e-3, 1e-3]
    assert rates(switched, 200) == [pytest.approx(1e-3 / max(1, warmup))]
    assert (switched.train.schedule_start, switched.train.warmup_steps) == (200, warmup)


def test_the_contract_tells_that_a_constant_rate_becomes_a_cosine() -> None:
    made = resume(of(CONSTANT), schedule="cosine", warmup_steps=50)
    assert changes(made) == {
        "schedule": ("constant", "cosine", "--schedule"),
        "warmup_steps": (100, 50, "--warmup-steps"),
    }
    words = "the schedule: cosine from step 200 after 50 steps of warm-up, 0.001 → 0.0001 at step 400"
    assert made.resets == (words,)
    assert (made.rate_before, made.rate_after) == (1e-3, pytest.approx(2e-5))
    assert in_words(made).endswith("LEARNING RATE of the first update: 0.001 before, 2e-05 after")


def test_the_contract_tells_that_a_cosine_becomes_a_constant_rate_and_that_the_rate_jumps() -> None:
    made = resume(of(COSINE), schedule="constant")
    assert changes(made) == {
        "schedule": ("cosine", "constant", "--schedule"),
        "warmup_steps": (20, 0, "the schedule starts anew"),
    }
    assert made.resets == ("the schedule: constant 0.001",)
    assert made.rate_before == pytest.approx(cosine(180 / 380, 1e-4, 1e-3))
    assert made.rate_after == 1e-3


def test_a_reset_optimizer_leaves_the_rate_as_it_was() -> None:
    reset = resumed(COSINE, optimizer="reset")
    assert reset.train == replace(resumed(COSINE).train, optimizer="reset")
    assert rates(reset, *range(200, 400)) == rates(COSINE, *range(200, 400))


def test_a_rewarm_rises_to_the_schedule_that_goes_on() -> None:
    rewarmed = resumed(COSINE, optimizer="rewarm")
    before = rates(COSINE, *range(200, 400))
    assert rates(rewarmed, *range(200, 300)) == pytest.approx(
        [rate * (i + 1) / 100 for i, rate in enumerate(before[:100])]
    )
    assert rates(rewarmed, *range(299, 400)) == before[99:]
    assert (rewarmed.train.schedule_start, rewarmed.train.warmup_steps) == (0, 20)
    assert rewarmed.origins["rewarm_steps"] == "rewarm"
    assert REWARM_STEPS == 100


def test_the_warm_up_that_is_said_with_a_rewarm_is_the_rewarms() -> None:
    """Without one, it would start the schedule anew."""
    rewarmed = resumed(COSINE, optimizer="rewarm", warmup_steps=10)
    assert (rewarmed.train.warmup_steps, rewarmed.train.rewarm_steps, rewarmed.train.schedule_start) == (20, 10, 0)
    assert (rewarmed.origins["warmup_steps"], rewarmed.origins["rewarm_steps"]) == ("checkpoint", "--warmup-steps")
    assert rates(rewarmed, 200) == [pytest.approx(rates(COSINE, 200)[0] / 10)]
    assert rates(rewarmed, *range(209, 400)) == rates(COSINE, *range(209, 400))


@pytest.mark.parametrize(
    "said", [{"schedule": "cosine"}, {"learning_rate": 1e-4}, {"schedule": "linear", "decay_steps": 50}]
)
def test_a_rewarm_lies_over_a_schedule_that_starts_anew_too(said: dict[str, Any]) -> None:
    anew = resumed(COSINE, **said)
    rewarmed = resumed(COSINE, **said, optimizer="rewarm", warmup_steps=10)
    steps = range(200, 400)
    part = [min(1.0, (step - 199) / 10) for step in steps]
    assert rates(rewarmed, *steps) == pytest.approx(
        [p * rate for p, rate in zip(part, rates(anew, *steps), strict=True)]
    )
    assert rewarmed.train.schedule_start == 200


def test_a_resume_within_a_rewarm_goes_on_with_it_unless_it_says_something_of_the_rate() -> None:
    rewarmed = resumed(COSINE, optimizer="rewarm")
    assert rates(resumed(rewarmed, 250), *range(250, 400)) == rates(rewarmed, *range(250, 400))
    assert rates(resumed(rewarmed, 250, batch_size=4, optimizer="reset"), 250) == rates(rewarmed, 250)
    assert set(rates(resumed(rewarmed, 250, learning_rate=1e-5), *range(250, 400))) == {1e-5}
    assert rates(resumed(rewarmed, 250, schedule="cosine"), 250) == [1e-3]
    again = resumed(rewarmed, 250, optimizer="rewarm", warmup_steps=10)
    assert rates(again, 250, 260) == pytest.approx([rates(COSINE, 250)[0] / 10, rates(COSINE, 260)[0]])


@settings(derandomize=True, deadline=None)
@given(
    st.integers(0, 3000), st.integers(0, 3000), st.integers(0, 500), st.sampled_from(["constant", "cosine", "linear"])
)
def test_a_rewarm_only_lowers_the_rate_and_only_while_it_goes_on(
    step: int, start: int, length: int, schedule: str
) -> None:
    without = TrainConfig(schedule=schedule, decay_steps=2000)
    rewarmed = replace(without, rewarm_start=start, rewarm_steps=length)
    rate, full = rewarmed.learning_rate_at(step), without.learning_rate_at(step)
    assert (rate < full) == (full > 0 and start <= step < start + length - 1)
    assert 0 <= rate <= full


def test_how_a_resume_begins_is_not_inherited_by_the_next_one() -> None:
    parent = resumed(COSINE, optimizer="reset", data_cursor="restart")
    after = resumed(parent, 300)
    assert (after.train.optimizer, after.train.data_cursor) == ("keep", "keep")
    assert after.origins["optimizer"] == after.origins["data_cursor"] == "default"


@pytest.mark.parametrize(("name", "value"), [("optimizer", "reset"), ("optimizer", "keep"), ("data_cursor", "restart")])
def test_a_job_from_scratch_has_no_such_choice(name: str, value: str) -> None:
    assert name in OF_RESUME
    with pytest.raises(UsageError, match=r"\(gptjobs.toml\) says how a resume begins") as refusal:
        settle({name: Given(value, "gptjobs.toml")})
    assert "submit resume" in (refusal.value.hint or "")


@pytest.mark.parametrize(("name", "value"), [("optimizer", "restart"), ("data_cursor", "reset"), ("optimizer", True)])
def test_another_choice_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name.replace("_", "-")):
        resumed(NANO, **{name: value})


def test_the_contract_tells_that_the_moments_reset_because_they_were_asked_to() -> None:
    made = resume(optimizer="reset")
    assert made.resets == ("the optimizer's moments: reset was asked for (--optimizer)",)
    assert not [each for each in made.continues if "moments" in each]
    assert made.changes == ()
    assert made.rate_before == made.rate_after == NANO.train.learning_rate_at(200)


def test_the_contract_tells_of_a_rewarm_with_the_rate_before_and_after() -> None:
    made = resume(optimizer="rewarm", warmup_steps=50)
    assert made.resets == (
        "the optimizer's moments: rewarm was asked for (--optimizer)",
        "the warm-up: from step 200 to 250 the rate rises to the schedule's",
    )
    assert "the schedule: cosine from step 0 after 20 steps of warm-up, 0.0006 → 6e-05 at step 400" in made.continues
    assert made.changes == ()
    assert made.rate_before == NANO.train.learning_rate_at(200)
    assert made.rate_after == pytest.approx(NANO.train.learning_rate_at(200) / 50)


def test_the_contract_tells_of_a_rewarm_that_goes_on() -> None:
    made = resume(of(resumed(NANO, 150, optimizer="rewarm")))
    assert made.resets == ()
    assert made.continues[-1] == "the warm-up: from step 150 to 250 the rate rises to the schedule's"
    assert made.rate_before == made.rate_after
    over = resume(of(resumed(NANO, 150, optimizer="rewarm", warmup_steps=50)))
    assert not [each for each in over.continues if "the warm-up" in each]


def test_the_contract_tells_that_the_data_is_begun_anew_because_it_was_asked_for() -> None:
    made = resume(data_cursor="restart")
    assert made.resets == (
        "the place in the data: restart was asked for (--data-cursor); from the data's first window",
    )
    assert not [each for each in made.continues if "place in the data" in each]
    assert made.changes == ()


def test_what_the_file_does_not_have_is_told_before_what_was_asked_for() -> None:
    made = resume(manifest(has_moments=False), optimizer="reset", block_size=128, data_cursor="restart")
    assert "the optimizer's moments: the file has none that fit" in made.resets
    assert "the place in the data: windows of 128 tokens have another order, from its first one" in made.resets


def test_to_ask_for_what_is_the_rule_changes_nothing() -> None:
    assert resume(optimizer="keep", data_cursor="keep") == resume()
