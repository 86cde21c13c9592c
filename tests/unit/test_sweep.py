"""A search, as it is asked for: what is tried, in which order, on how many tokens, and what means nothing."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gptjobs import sweep as sweeps
from gptjobs.config import HYPERPARAMETERS
from gptjobs.errors import UsageError
from gptjobs.sweep import CMAES, GRID, PRUNERS, TPE, Dimension, Sweep, Trial, grid, span
from tests.unit.conftest import NANO, NOON, typed


def sweep(**changes: Any) -> Sweep:
    values: dict[str, Any] = {
        "id": "a1b2c3d4e5f6",
        "overrides": typed(steps=500),
        "parent": "checkpoints/first/checkpoint_gpt2_text_step000200_11222025_120001.pt",
        "trials": 6,
        "submitted_at": NOON,
    }
    return Sweep(**{**values, **changes})


BOTH = (grid("learning_rate=1e-5,5e-5,1e-4"), grid("block_size=64,32"))


def test_a_grid_is_tried_in_the_order_of_its_options_the_last_changing_first() -> None:
    made = sweep(dimensions=BOTH)
    assert [made.point(number) for number in range(4)] == [
        {"learning_rate": 1e-5, "block_size": 64},
        {"learning_rate": 1e-5, "block_size": 32},
        {"learning_rate": 5e-5, "block_size": 64},
        {"learning_rate": 5e-5, "block_size": 32},
    ]


@given(some.lists(some.integers(1, 5), min_size=1, max_size=4), some.sampled_from(PRUNERS))
def test_every_point_of_a_grid_is_tried_once(lengths: list[int], pruner: str) -> None:
    names = ("seed", "warmup_steps", "batch_size", "log_interval")
    dimensions = [
        Dimension(name=name, choices=tuple(range(1, 1 + length))) for name, length in zip(names, lengths, strict=False)
    ]
    made = sweep(dimensions=dimensions, pruner=pruner)
    found = {tuple(made.point(number).items()) for number in range(sweeps.points(dimensions, {}))}
    assert len(found) == sweeps.points(dimensions, {})


def test_a_pruner_has_a_grid_tried_in_an_order_that_its_values_do_not_tell() -> None:
    rates = grid("learning_rate=" + ",".join(f"{each}e-5" for each in range(1, 17)))
    made = [sweep(dimensions=(rates,), pruner="asha").point(number)["learning_rate"] for number in range(16)]
    assert sorted(made) == [*rates.choices] != made
    assert made == [sweep(dimensions=(rates,), pruner="asha").point(number)["learning_rate"] for number in range(16)]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (lambda: grid("learning_rat=1"), "there is no hyperparameter 'learning_rat'"),
        (lambda: grid("learning_rate="), "there is no value to try"),
        (lambda: grid("learning_rate"), "names no hyperparameter and its values"),
        (lambda: grid("learning_rate=1e-5,-1"), "is not above 0"),
        (lambda: grid("batch_size=8,many"), "'many' is no whole number"),
        (lambda: grid("schedule=constant,steps"), "is none of constant, cosine, linear"),
        (lambda: grid("steps=10,20"), "trials compare at equal tokens"),
        (lambda: grid("data=a,b"), "different data do not compare"),
        (lambda: grid("eval_context=64,128"), "different contexts do not compare"),
        (lambda: grid("eval_interval=5,10"), "a pruner compares trials at the same tokens"),
        (lambda: span("weight_decay=0:1:log"), "a logarithm has no value at 0"),
        (lambda: span("learning_rate=1e-3:1e-5"), "is not below"),
        (lambda: span("learning_rate=1e-5"), "is no range"),
        (lambda: span("learning_rate=1e-5:1e-3:linear"), "is no range"),
        (lambda: span("learning_rate=1e-5:20"), "is above 10"),
        (lambda: span("schedule=constant:linear"), "schedule is no number"),
    ],
)
def test_what_means_no_search_is_said(said: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("(", r"\(")) as error:
        said()
    assert error.value.hint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "there is nothing to search"),
        ({"dimensions": (BOTH[0], BOTH[0])}, "learning_rate is searched twice"),
        ({"dimensions": BOTH, "overrides": typed(block_size=64)}, "--block-size was given, and block_size is searched"),
        ({"dimensions": (span("dropout=0:0.5"),)}, "a grid has no --range"),
        ({"dimensions": (span("dropout=0:0.5"),), "sampler": CMAES}, "two ranges or more"),
        ({"changes": typed(learning_rate=1e-5), "parent": None}, "compares changes from a checkpoint"),
        ({"changes": typed(learning_rate=1e-5), "dimensions": (BOTH[1],)}, "searches nothing else"),
    ],
)
def test_a_search_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sweeps.check(sweep(**changes))


def test_a_grid_takes_every_kind_of_value() -> None:
    assert grid("tied=true,false").choices == (True, False)
    assert grid("beta2=0.95,0.99").choices == (0.95, 0.99)
    assert grid("schedule=constant,cosine").choices == ("constant", "cosine")
    assert grid("batch-size=8,8,16").choices == (8, 16)
    assert span("batch_size=8:64:log") == Dimension(name="batch_size", low=8, high=64, log=True)


def test_trials_of_other_shapes_train_on_as_many_tokens() -> None:
    made = sweep(dimensions=(grid("block_size=64,32"), grid("batch_size=8,3")))
    trained = []
    for number in range(4):
        trial = Trial(number=number, params=made.point(number))
        job = made.job(trial, NANO, 200)
        shape = made.settled(NANO, 200, trial.params).train
        trained.append((job.overrides["steps"].value, shape.batch_size * shape.block_size))
    assert trained == [(500, 512), (1334, 192), (1000, 256), (2667, 96)]
    assert all(0 <= steps * tokens - 500 * 512 < tokens for steps, tokens in trained)


def test_a_budget_in_tokens_is_what_each_trial_trains_on() -> None:
    made = sweep(dimensions=(grid("block_size=64,32"),), budget_tokens=10_000)
    steps = [
        made.job(Trial(number=each, params=made.point(each)), NANO, 200).overrides["steps"].value for each in (0, 1)
    ]
    assert steps == [20, 40]


def test_trials_are_evaluated_at_the_smallest_block_of_any() -> None:
    made = sweep(dimensions=BOTH)
    contexts = {
        made.job(Trial(number=each, params=made.point(each)), NANO, 200).overrides["eval_context"].value
        for each in range(6)
    }
    assert contexts == {32}
    larger = sweep(dimensions=(grid("block_size=128,256"),))
    assert larger.job(Trial(number=0, params={"block_size": 128}), NANO, 200).overrides["eval_context"].value == 64
    same = sweep(dimensions=(BOTH[0],))
    assert "eval_context" not in same.job(Trial(number=0, params={}), NANO, 200).overrides


def test_a_trial_that_cannot_be_is_a_job_all_the_same_for_a_worker_to_refuse() -> None:
    made = sweep(dimensions=(grid("block_size=64,4096"),))
    job = made.job(Trial(number=1, params={"block_size": 4096}), NANO, 200)
    assert job.overrides["block_size"].value == 4096
    assert job.overrides["steps"].value == 500


def test_diagnose_tries_nothing_each_change_alone_and_all_together() -> None:
    made = sweep(changes=typed(learning_rate=1e-5, block_size=32), dimensions=(grid("seed=1,2"),))
    assert sweeps.points(made.dimensions, made.changes) == 8
    assert [made.point(number) for number in range(8)] == [
        {"seed": 1},
        {"seed": 2},
        {"learning_rate": 1e-5, "seed": 1},
        {"learning_rate": 1e-5, "seed": 2},
        {"block_size": 32, "seed": 1},
        {"block_size": 32, "seed": 2},
        {"learning_rate": 1e-5, "block_size": 32, "seed": 1},
        {"learning_rate": 1e-5, "block_size": 32, "seed": 2},
    ]
    assert sweeps.arms(typed(learning_rate=1e-5)) == [(), ("learning_rate",)]


def test_the_job_of_a_trial_has_the_same_id_whoever_submits_it() -> None:
    made = sweep(dimensions=BOTH, name="rates")
    jobs = [made.job(Trial(number=3, params=made.point(3)), NANO, 200) for _ in range(2)]
    assert jobs[0].id == jobs[1].id
    assert (jobs[0].name, jobs[0].sweep, jobs[0].trial) == ("rates-3", made.id, 3)
    assert made.part(Trial(number=3, params={}), 1, kind="resume").id != jobs[0].id


def test_a_sweep_is_read_as_it_was_written() -> None:
    made = sweep(
        name="all", dimensions=(*BOTH, span("dropout=0:0.5"), grid("tied=true,false")), sampler=TPE, pruner="asha",
        parallel=3, budget_tokens=10**6, data_digest="d" * 64,
    )  # fmt: skip
    assert Sweep.from_dict(made.to_dict()) == made
    diagnosed = replace(made, dimensions=(), sampler=GRID, changes=typed(batch_size=32))
    assert Sweep.from_dict(diagnosed.to_dict()) == diagnosed


def test_a_pruner_has_trials_evaluated_nine_times_from_their_start_unless_told_otherwise() -> None:
    trial = Trial(number=0, params={"learning_rate": 1e-5})
    made = sweep(dimensions=(BOTH[0],), pruner="asha")
    assert made.job(trial, NANO, 200).overrides["eval_interval"].value == 56
    told = replace(made, overrides=typed(steps=500, eval_interval=100))
    assert told.job(trial, NANO, 200).overrides["eval_interval"].value == 100
    assert made.job(trial, NANO, 207).overrides["eval_start"].value == 207
    assert "eval_interval" not in replace(made, pruner="none").job(trial, NANO, 200).overrides


def test_what_is_never_searched_is_named_as_it_is() -> None:
    assert set(sweeps._NEVER_SEARCHED) <= HYPERPARAMETERS.keys()
