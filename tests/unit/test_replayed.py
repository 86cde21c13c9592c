"""What steps that were run again say."""

import math
from typing import Any

import pytest

from gptjobs.replayed import AS_IT_WAS, RESET, TENTH, judge

STEPS = range(100, 111)
HIGH = 6.0


def usual(steps: range, loss: float = 3.0) -> dict[int, float]:
    """Losses that differ by a hundredth."""
    return {each: loss + (each % 3 - 1) / 100 for each in steps}


TEXT = usual(range(80, 131))
ODD = TEXT | dict.fromkeys(STEPS, HIGH)
CALM = usual(range(91, 111))
RISEN = CALM | dict.fromkeys(STEPS, HIGH)
LOST = CALM | dict.fromkeys(STEPS, math.nan)

SOON_LOST = CALM | dict.fromkeys(STEPS[4:], math.nan)


def judged(
    recorded: Any = RISEN, text: Any = TEXT, was: Any = RISEN, reset: Any = RISEN, tenth: Any = RISEN,
    steps: range = STEPS,
) -> tuple[str, str, str]:  # fmt: skip
    """Where it is, in words, and the evidence as a line."""
    made = judge(recorded, text, {AS_IT_WAS: was, RESET: reset, TENTH: tenth}, steps, "cpu")
    return made.where, made.words, "; ".join(made.evidence)


@pytest.mark.parametrize(
    ("losses", "where"),
    [
        ({"text": ODD}, "text"),
        ({"text": TEXT | dict.fromkeys(STEPS, 0.5)}, "text"),
        ({"text": TEXT | dict.fromkeys(STEPS, math.nan)}, "text"),
        ({"text": dict.fromkeys(TEXT, math.nan)}, "weights"),
        ({"tenth": CALM}, "rate"),
        ({"tenth": CALM, "reset": CALM}, "rate"),
        ({"reset": CALM}, "optimizer"),
        ({}, "weights"),
        ({"was": CALM, "reset": CALM, "tenth": CALM}, "device"),
        ({"was": CALM, "reset": CALM, "tenth": CALM, "recorded": dict.fromkeys(STEPS)}, "device"),
        ({"was": CALM, "reset": CALM, "tenth": CALM, "recorded": CALM}, "nowhere"),
        ({"was": CALM, "reset": CALM, "tenth": CALM, "recorded": {}}, "nowhere"),
        ({"was": LOST, "reset": LOST, "tenth": CALM}, "rate"),
        ({"was": LOST, "reset": LOST, "tenth": LOST}, "weights"),
        ({"was": SOON_LOST, "reset": SOON_LOST, "tenth": CALM}, "rate"),
    ],
)
def test_each_verdict_follows_from_what_rises_and_what_does_not(losses: dict[str, Any], where: str) -> None:
    assert judged(**losses)[0] == where


def test_the_evidence_has_the_numbers_of_all_that_was_run() -> None:
    _, words, evidence = judged(tenth=CALM, reset=CALM)
    assert words.endswith(
        "at a tenth of it the loss does not rise; with Adam's moments begun anew it does not rise either"
    )
    assert "these batches have 3.0100, others beside them 3.0000" in evidence
    assert "as it was: 6.0000; moments reset: 3.0100; a tenth of the rate: 3.0100; in the job: 6.0000" in evidence
    assert "cpu" in judged(was=CALM, reset=CALM, tenth=CALM)[1]


def test_a_rise_below_the_checkpoints_loss_is_seen_from_where_it_had_come_to() -> None:
    """The loss fell from 3 to 2 since the checkpoint, and rose to 2.9."""
    fell = usual(range(60, 100), 2.0)
    risen, calm = fell | dict.fromkeys(STEPS, 2.9), fell | usual(STEPS, 2.0)
    assert judged(risen, was=risen, reset=risen, tenth=calm)[0] == "rate"
    assert judged(calm, was=calm, reset=calm, tenth=calm)[0] == "nowhere"


def test_two_steps_right_behind_the_checkpoint_are_held_against_the_batches_after_them() -> None:
    steps = range(2, 4)
    text = usual(range(2, 24))
    risen = dict.fromkeys(steps, HIGH)
    assert judged(risen, text, risen, usual(steps), risen, steps)[0] == "optimizer"
    assert judged(risen, text | risen, risen, risen, risen, steps)[0] == "text"
    alone = usual(steps)
    assert judged(risen, alone, risen, risen, alone, steps)[0] == "rate"


def test_a_single_odd_step_among_many_is_none() -> None:
    once = CALM | {105: HIGH}
    assert judged(once, was=once, reset=once, tenth=once)[0] == "nowhere"
