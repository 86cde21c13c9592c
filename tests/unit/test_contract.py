"""The resume contract: it says what continues, changes and resets, and it is true."""

from typing import Any

import pytest

from gptjobs.checkpoint import Checkpoint, Losses, Manifest
from gptjobs.config import Plan, settle
from gptjobs.contract import Contract, contract, in_words
from tests.unit.conftest import NANO, manifest, typed


def resume(old: Manifest | None = None, data_digest: str = "d" * 64, **values: Any) -> Contract:
    """The contract of a resume from `old`, else from the job `first` at step 200 of 400."""
    old = old or manifest()
    settled = settle(typed(**values), parent=old.settled, parent_step=old.step)
    parent = Checkpoint(name="checkpoints/first/a.pt", manifest=old)
    plan = Plan(
        job="second", kind="resume", settled=settled, data_name="text", data_digest=data_digest, parent=parent.name
    )
    return contract(plan, parent)


def changes(made: Contract) -> dict[str, tuple[Any, Any, str]]:
    return {each.name: (each.before, each.after, each.origin) for each in made.changes}


def test_nothing_said_means_that_all_continues():
    made = resume()
    assert (made.changes, made.resets) == ((), ())
    assert (made.step, made.end_step) == (200, 400)
    assert made.rate_before == made.rate_after == NANO.train.learning_rate_at(200)
    continuing = "\n".join(made.continues)
    for words in (
        "weights of step 200, validation loss 2.7500 at context 64",
        "optimizer's moments",
        "steps: 200 → 400, 102,400 tokens so far",
        "place in the data, after 1,600 windows",
        "schedule: cosine from step 0 after 20 steps of warm-up, 0.0006 → 6e-05 at step 400",
    ):
        assert words in continuing


def test_a_learning_rate_alone_changes_the_schedule_and_the_contract_says_why():
    made = resume(learning_rate=1e-5)
    why = "a rate was given, no schedule"
    assert changes(made) == {
        "learning_rate": (6e-4, 1e-5, "--learning-rate"),
        "schedule": ("cosine", "constant", why),
        "warmup_steps": (20, 0, why),
    }
    assert made.resets == ("the schedule: constant 1e-05",)
    assert (made.rate_before, made.rate_after) == (NANO.train.learning_rate_at(200), 1e-5)


def test_every_hyperparameter_that_differs_is_shown_with_its_origin():
    made = resume(batch_size=32, dropout=0.1, beta2=0.99, weight_decay=0.0, eval_interval=50)
    assert changes(made) == {
        "batch_size": (8, 32, "--batch-size"),
        "dropout": (0.0, 0.1, "--dropout"),
        "beta2": (0.95, 0.99, "--beta2"),
        "weight_decay": (0.1, 0.0, "--weight-decay"),
        "eval_interval": (500, 50, "--eval-interval"),
    }
    assert made.resets == ()


def test_what_is_said_as_it_was_changes_nothing():
    assert resume(batch_size=8, block_size=64, seed=7).changes == ()


def test_grown_positions_are_a_change_of_the_model():
    made = resume(block_size=2048, grow_positions=True)
    assert changes(made)["n_positions"] == (1024, 2048, "--grow-positions")


@pytest.mark.parametrize(
    ("what", "reset"),
    [
        ({"block_size": 128}, "windows of 128 tokens"),
        ({"data_digest": "e" * 64}, "other data"),
        ({"seed": 8}, ""),
    ],
    ids=["block", "data", "seed"],
)
def test_another_order_of_data_resets_the_place_in_it(what: dict[str, Any], reset: str):
    made = resume(**what)
    assert [each for each in made.resets if each.startswith("the place in the data") and reset in each]
    assert "place in the data" not in "\n".join(made.continues)


def test_a_schedule_that_starts_anew_is_a_reset():
    made = resume(schedule="linear", warmup_steps=10, min_learning_rate=1e-5)
    assert made.resets == ("the schedule: linear from step 200 after 10 steps of warm-up, 0.0006 → 1e-05 at step 400",)
    assert made.rate_after == pytest.approx(6e-5)


def test_another_schedule_from_the_step_where_the_old_one_began_is_a_reset_too():
    assert resume(manifest(step=0), schedule="linear").resets == (
        "the schedule: linear from step 0, 0.0006 → 6e-05 at step 400",
    )


def test_more_steps_show_where_the_job_ends_now():
    assert resume(steps=2000).end_step == 2200


def test_a_checkpoint_that_was_not_evaluated_claims_no_loss():
    made = resume(manifest(losses=Losses(train_loss=2.5, eval_context=64)))
    assert made.continues[0] == "weights of step 200, no validation loss"


def test_the_words_tell_the_same():
    words = in_words(resume(learning_rate=1e-5, batch_size=32, block_size=128, steps=2000)).splitlines()
    assert words[:3] == ["resume checkpoints/first/a.pt", "       step 200 → 2200", "CONTINUES"]
    assert [each for each in words if each.isupper()] == ["CONTINUES", "CHANGES", "RESETS"]
    assert "  learning_rate  0.0006 → 1e-05  (--learning-rate)" in words
    assert "  batch_size     8 → 32  (--batch-size)" in words
    assert words[-1] == "LEARNING RATE of the first update: 0.000352 before, 1e-05 after"


def test_the_words_have_no_empty_sections():
    assert [each for each in in_words(resume()).splitlines() if each.isupper()] == ["CONTINUES"]
