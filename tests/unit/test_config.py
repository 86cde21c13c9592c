"""Settling hyperparameters: what wins over what, what is refused, and the learning rate that follows."""

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptjobs.config import (
    HYPERPARAMETERS,
    SCHEDULES,
    TRAIN_FIELDS,
    Given,
    Plan,
    Settled,
    TrainConfig,
    merge,
    settle,
)
from gptjobs.errors import Refused, UsageError
from tests.unit.conftest import typed

PARENT = settle(
    typed(
        model="nano", data="sources/text.md", steps=1000, batch_size=8, block_size=256, learning_rate=3e-3,
        schedule="linear", warmup_steps=10, min_learning_rate=1e-4, beta2=0.99, dropout=0.1, seed=7,
    )
)  # fmt: skip


def resumed(step: int = 600, **values: Any) -> Settled:
    return settle(typed(**values), parent=PARENT, parent_step=step)


def test_nothing_said_means_the_defaults():
    settled = settle({})
    model = settled.model
    assert (model.n_layer, model.n_head, model.n_embd, model.n_positions) == (12, 12, 768, 1024)
    assert settled.model.vocab_size == 50257
    assert (settled.start_step, settled.end_step) == (0, settled.train.steps)
    assert settled.train == replace(
        TrainConfig(), decay_steps=TrainConfig().steps, min_learning_rate=pytest.approx(6e-5)
    )


def test_nano_is_small_and_reads_bytes():
    settled = settle(typed(model="nano"))
    assert asdict(settled.model) == {
        "n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 1024, "vocab_size": 256,
        "activation": "gelu_tanh", "bias": True, "tied": True,
    }  # fmt: skip
    assert settled.train.encoding == "bytes"


def test_a_preset_gives_way_to_what_is_said_of_its_parts():
    settled = settle(typed(model="nano", n_layer=2, encoding="r50k_base"))
    assert (settled.model.n_layer, settled.model.n_embd) == (2, 128)
    assert (settled.train.encoding, settled.model.vocab_size) == ("r50k_base", 50257)


@pytest.mark.parametrize("parent", [None, PARENT], ids=["train", "resume"])
def test_a_preset_that_does_not_exist_is_a_usage_error(parent: Settled | None):
    with pytest.raises(UsageError, match="gpt5"):
        settle(typed(model="gpt5"), parent=parent)


def test_every_value_has_its_origin():
    settled = settle(typed(model="nano", batch_size=4))
    assert set(settled.origins) == set(HYPERPARAMETERS)
    assert {name: settled.origins[name] for name in ("n_layer", "batch_size", "block_size", "vocab_size")} == {
        "n_layer": "model nano",
        "batch_size": "--batch-size",
        "block_size": "default",
        "vocab_size": "encoding bytes",
    }
    assert settled.origins["decay_steps"] == "to the job's end"


def test_a_resume_changes_nothing_that_it_was_not_told_to():
    settled = resumed(batch_size=32)
    assert settled.model == PARENT.model
    assert settled.train == replace(PARENT.train, batch_size=32, steps=400)
    assert settled.origins["batch_size"] == "--batch-size"
    assert settled.origins["beta2"] == "checkpoint"
    assert settled.origins["n_layer"] == "checkpoint"
    assert set(settled.origins) == set(HYPERPARAMETERS)


def test_a_resume_does_what_was_left():
    settled = resumed(600)
    assert (settled.start_step, settled.train.steps, settled.end_step) == (600, 400, 1000)
    assert settled.origins["steps"] == "checkpoint: what was left"


def test_steps_of_a_resume_are_more_steps():
    assert resumed(600, steps=2000).end_step == 2600


def test_a_resume_of_a_finished_job_takes_the_default_number_of_steps():
    settled = resumed(1000)
    assert settled.train.steps == TRAIN_FIELDS["steps"].default
    assert settled.origins["steps"] == "default"


def test_a_resume_that_says_nothing_of_the_rate_goes_on_with_the_schedule_and_its_end():
    settled = resumed(600, steps=2000)
    rates = [settled.train.learning_rate_at(step) for step in range(600, 1500, 50)]
    assert rates == [PARENT.train.learning_rate_at(step) for step in range(600, 1500, 50)]
    assert rates[-1] == pytest.approx(1e-4)


def test_a_learning_rate_alone_means_a_constant_one_from_here():
    train = resumed(600, learning_rate=1e-5, steps=2000).train
    assert (train.schedule, train.warmup_steps, train.schedule_start) == ("constant", 0, 600)
    assert {train.learning_rate_at(step) for step in (600, 601, 1500, 2599)} == {1e-5}


def test_a_learning_rate_alone_is_the_origin_of_the_schedule_it_means():
    origins = resumed(600, learning_rate=1e-5).origins
    assert origins["learning_rate"] == "--learning-rate"
    assert origins["schedule"] == origins["warmup_steps"] == "a rate was given, no schedule"


@pytest.mark.parametrize(
    "word",
    [{"schedule": "cosine"}, {"warmup_steps": 50}, {"decay_steps": 100}, {"min_learning_rate": 1e-5}],
    ids=lambda word: next(iter(word)),
)
def test_any_word_about_the_schedule_starts_it_anew(word: dict[str, Any]):
    train = resumed(600, steps=300, **word).train
    assert train.schedule_start == 600
    assert train.learning_rate == PARENT.train.learning_rate
    assert train.schedule == word.get("schedule", "linear")
    assert train.warmup_steps == word.get("warmup_steps", 0)
    assert train.decay_steps == word.get("decay_steps", 300)
    assert train.learning_rate_at(600 + train.warmup_steps) == pytest.approx(3e-3)


def test_a_learning_rate_with_a_schedule_keeps_that_schedule():
    train = resumed(600, steps=300, learning_rate=1e-3, schedule="linear", min_learning_rate=0.0).train
    assert train.learning_rate_at(600) == 1e-3
    assert train.learning_rate_at(750) == pytest.approx(5e-4)
    assert train.learning_rate_at(900) == 0.0


def test_a_block_larger_than_the_position_table_is_refused():
    with pytest.raises(Refused, match=r"2048.*1024") as refusal:
        resumed(block_size=2048)
    assert refusal.value.exit_code == 3
    assert "--grow-positions" in (refusal.value.hint or "")


def test_growing_the_position_table_is_said_and_is_not_inherited():
    grown = resumed(block_size=2048, grow_positions=True)
    assert grown.model.n_positions == 2048
    assert grown.origins["n_positions"] == "--grow-positions"
    with pytest.raises(Refused):
        settle(typed(block_size=4096), parent=grown, parent_step=700)


def test_a_new_model_gets_a_position_table_for_its_block():
    assert settle(typed(block_size=2048)).model.n_positions == 2048
    with pytest.raises(Refused):
        settle(typed(block_size=2048, n_positions=1024))


@pytest.mark.parametrize(
    "shape",
    [{"n_layer": 6}, {"n_embd": 256}, {"n_positions": 2048}, {"encoding": "r50k_base"}, {"model": "gpt2"}],
    ids=lambda shape: next(iter(shape)),
)
def test_a_resume_as_another_shape_is_refused(shape: dict[str, Any]):
    with pytest.raises(Refused, match="checkpoint") as refusal:
        resumed(**shape)
    assert refusal.value.exit_code == 3


def test_a_resume_may_name_the_shape_that_the_checkpoint_has():
    assert resumed(model="nano", n_layer=4, encoding="bytes").model == PARENT.model


def test_gpt2_and_r50k_base_are_one_encoding():
    parent = settle(typed(encoding="gpt2"))
    assert settle(typed(encoding="r50k_base"), parent=parent, parent_step=1).model == parent.model


def test_every_value_out_of_bounds_is_named_at_once():
    wrong = {"batch_size": 0, "block_size": -1, "learning_rate": math.nan, "weight_decay": math.inf}
    with pytest.raises(UsageError) as error:
        settle(typed(**wrong))
    assert error.value.exit_code == 2
    for name in ("--batch-size", "--block-size", "--learning-rate", "--weight-decay"):
        assert name in error.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", -1e-3),
        ("learning_rate", math.inf),
        pytest.param("learning_rate", 10**400, id="learning_rate-huge"),
        ("learning_rate", "1e-3"),
        ("steps", 0),
        ("steps", 2.5),
        ("steps", True),
        ("beta1", 1.0),
        ("dropout", 1.0),
        ("schedule", "exponential"),
        ("encoding", ["bytes"]),
        ("model", ["nano"]),
        ("grow_positions", 1),
        ("n_head", 7),
    ],
)
@pytest.mark.parametrize("parent", [None, PARENT], ids=["train", "resume"])
def test_a_value_that_makes_no_sense_is_an_error_of_its_user(name: str, value: Any, parent: Settled | None):
    with pytest.raises((UsageError, Refused)):
        settle(typed(**{name: value}), parent=parent)


def test_a_whole_number_may_stand_for_a_real_one():
    train = settle(typed(weight_decay=0, grad_clip=2)).train
    assert (repr(train.weight_decay), repr(train.grad_clip)) == ("0.0", "2.0")


@pytest.mark.parametrize(
    ("schedule", "step", "rate"),
    [
        ("constant", 0, 1e-4),
        ("constant", 9, 1e-3),
        ("constant", 10**6, 1e-3),
        ("linear", 4, 5e-4),
        ("linear", 10, 1e-3),
        ("linear", 35, 7.75e-4),
        ("linear", 110, 1e-4),
        ("linear", 10**6, 1e-4),
        ("cosine", 9, 1e-3),
        ("cosine", 10, 1e-3),
        ("cosine", 60, 5.5e-4),
        ("cosine", 35, 1e-4 + 9e-4 * (0.5 + math.sqrt(0.125))),
        ("cosine", 110, 1e-4),
        ("cosine", 10**6, 1e-4),
    ],
)
@pytest.mark.parametrize("start", [0, 700])
def test_the_learning_rate_at_exact_points(schedule: str, step: int, rate: float, start: int):
    train = TrainConfig(
        learning_rate=1e-3, schedule=schedule, warmup_steps=10, decay_steps=110, min_learning_rate=1e-4,
        schedule_start=start,
    )  # fmt: skip
    assert train.learning_rate_at(start + step) == pytest.approx(rate, rel=1e-12)


def test_micro_batches_are_never_larger_than_the_batch():
    assert [TrainConfig(batch_size=32, micro_batch=micro).windows_at_once for micro in (0, 8, 64)] == [32, 8, 32]


@pytest.mark.parametrize(
    ("said", "device", "restarts"),
    [
        ("auto", "mps", True),
        ("auto", "cuda", False),
        ("auto", "cpu", False),
        ("on", "cpu", True),
        ("off", "mps", False),
    ],
)
def test_a_trainer_whose_memory_grows_is_restarted_on_apples_gpus_or_where_it_is_said(
    said: str, device: str, restarts: bool
):
    assert TrainConfig(restart_on_growth=said).restarts_on_growth(device) is restarts


def test_restarting_on_growth_is_not_inherited():
    parent = replace(PARENT, train=replace(PARENT.train, restart_on_growth="on"))
    assert settle({}, parent=parent, parent_step=500).train.restart_on_growth == "auto"


def test_later_layers_win():
    merged = merge({"seed": Given(1, "file"), "steps": Given(5, "file")}, {"seed": Given(2, "--seed")})
    assert merged == {"seed": Given(2, "--seed"), "steps": Given(5, "file")}


def a_plan() -> Plan:
    return Plan(
        job="3f9a", kind="resume", settled=PARENT, data_name="text", data_digest="d" * 64, parent="checkpoints/a/b.pt"
    )


def test_a_plan_reads_back_as_it_was_written():
    assert Plan.from_dict(json.loads(json.dumps(a_plan().to_dict()))) == a_plan()


def test_a_plan_from_a_later_version_reads_without_what_it_added():
    record = a_plan().to_dict()
    for each in (record, record["model"], record["train"]):
        each["from_a_later_version"] = {"a": 1}
    assert Plan.from_dict(record) == a_plan()


def test_a_plan_from_an_earlier_version_reads_with_defaults():
    record = replace(a_plan(), settled=replace(PARENT, train=replace(PARENT.train, log_interval=99))).to_dict()
    del record["train"]["log_interval"]
    assert Plan.from_dict(record).settled.train.log_interval == TrainConfig().log_interval


anything_about_the_rate = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": st.floats(1e-9, 10.0),
        "min_learning_rate": st.floats(0.0, 10.0),
        "schedule": st.sampled_from(SCHEDULES),
        "warmup_steps": st.integers(0, 3000),
        "decay_steps": st.integers(0, 3000),
        "schedule_start": st.integers(0, 3000),
        "steps": st.integers(1, 3000),
    },
)


@settings(derandomize=True, deadline=None)
@given(anything_about_the_rate, st.none() | st.integers(1, 2000))
@example({"schedule_start": 2500}, None)
@example({"schedule_start": 2500, "warmup_steps": 0}, 600)
@example({"min_learning_rate": 1.0}, None)
@example({"learning_rate": 1e-5, "schedule": "cosine"}, 600)
def test_no_settled_rate_is_below_zero_or_above_the_peak(values: dict[str, Any], parent_step: int | None):
    try:
        settled = settle(typed(**values)) if parent_step is None else resumed(parent_step, **values)
    except (UsageError, Refused):
        return
    train, steps = settled.train, settled.train.steps
    for part in (0.0, 0.01, 0.3, 0.9, 1.0):
        rate = train.learning_rate_at(settled.start_step + int(part * (steps - 1)))
        assert 0.0 <= rate <= train.learning_rate * (1 + 1e-12)


def test_a_schedule_that_ends_before_its_job_is_refused_where_it_would_train_at_a_rate_of_zero() -> None:
    to_zero = settle(typed(data="text.md", steps=1000, min_learning_rate=0.0))
    for step in (400, 1000):
        with pytest.raises(Refused, match="the learning rate would be 0"):
            settle(typed(steps=2000), parent=to_zero, parent_step=step)
    assert settle(typed(steps=600), parent=to_zero, parent_step=400).end_step == 1000
    assert settle(typed(steps=2000, schedule="cosine"), parent=to_zero, parent_step=400).train.schedule_start == 400


def test_a_schedule_ends_at_a_tenth_of_its_peak_unless_told_otherwise() -> None:
    parent = settle(typed(data="text.md", steps=1000, learning_rate=1e-3))
    assert settle(typed(steps=500), parent=parent, parent_step=1000).train.learning_rate_at(1400) == pytest.approx(1e-4)
    anew = settle(typed(learning_rate=1e-5, schedule="cosine"), parent=parent, parent_step=500)
    assert anew.train.min_learning_rate == pytest.approx(1e-6)
    assert anew.origins["min_learning_rate"] == "a tenth of the peak"
