"""Which sample is next, and which trial stops early: by Optuna, from the records alone."""

import math
import pickle
from collections.abc import Mapping
from typing import Any

import pytest

from gptjobs import study
from gptjobs.config import settle
from gptjobs.errors import Refused
from gptjobs.job import JobState, Outcome
from gptjobs.sweep import ASHA, CMAES, HYPERBAND, MEDIAN, RANDOM, TPE, Sweep, Trial, grid, span
from gptjobs.trials import PRUNED, Evaluation, Tried
from tests.unit.conftest import typed
from tests.unit.test_sweep import sweep

SETTLED = settle(typed(model="nano", data="text.md", steps=90, batch_size=1, block_size=64, eval_interval=10))
RATE = span("learning_rate=1e-6:1e-2:log")


def tried(
    number: int, losses: Mapping[int, float], params: Mapping[str, Any] | None = None, reason: str | None = "finished"
) -> Tried:
    """A trial with these losses at its units, of which it has 9; None goes on."""
    outcome = None if reason is None else Outcome(state=JobState.FINISHED, reason=reason)
    return Tried(
        trial=Trial(number=number, params=params or {"learning_rate": 10.0 ** -(2 + number % 4)}),
        jobs=[f"job{number}"],
        outcome=outcome,
        settled=SETTLED,
        evaluations=[Evaluation(0, 0, 9.0, 64), *(Evaluation(10 * u, 640 * u, loss, 64) for u, loss in losses.items())],
    )


def whole(number: int, loss: float, params: Mapping[str, Any] | None = None) -> Tried:
    return tried(number, {unit: loss for unit in range(1, 10)}, params)


def searching(sampler: str, *dimensions: Any) -> Sweep:
    return sweep(dimensions=dimensions or (RATE,), sampler=sampler, trials=50)


@pytest.mark.parametrize("sampler", [RANDOM, TPE, CMAES])
def test_asked_again_of_the_same_records_a_sampler_says_the_same(sampler: str) -> None:
    search = searching(sampler, RATE, span("dropout=0:0.5"))
    records: list[Tried] = []
    for number in range(12):
        first, again = study.suggest(search, records), study.suggest(search, records)
        assert first == again and first.number == number
        assert 1e-6 <= first.params["learning_rate"] <= 1e-2 and 0 <= first.params["dropout"] <= 0.5
        records.append(Tried(**{**vars(whole(number, 1.0 + number)), "trial": first}))
    assert len({each.trial.params["learning_rate"] for each in records}) == 12


def test_a_samplers_memory_that_names_code_is_refused_and_none_of_it_run() -> None:
    search, records = searching(CMAES, RATE, span("dropout=0:0.5")), list[Tried]()
    for number in range(9):
        records.append(Tried(**{**vars(whole(number, 1.0 + number)), "trial": study.suggest(search, records)}))
    attrs = next(each.trial.attrs for each in records if "cma:optimizer:0" in each.trial.attrs)
    evil = pickle.dumps(Evil()).hex()
    for content in (evil, "00", "not hexadecimal", attrs["cma:optimizer:0"]):
        planted = Trial(number=8, params=records[8].trial.params, attrs={"cma:optimizer:0": content})
        with pytest.raises(Refused, match="a sampler's memory that is none"):
            study.suggest(search, [*records[:8], Tried(**{**vars(records[8]), "trial": planted})])


class Evil:
    def __reduce__(self) -> Any:
        return pytest.fail, ("it was run",)


@pytest.mark.parametrize("sampler", [TPE, CMAES])
def test_a_sampler_that_learns_comes_closer_to_the_best_than_chance(sampler: str) -> None:
    """The loss is lowest at 1e-4 and 0.1."""

    def ends(kind: str) -> float:
        search, records = searching(kind, RATE, span("dropout=0:0.5")), list[Tried]()
        for number in range(40):
            trial = study.suggest(search, records)
            loss = abs(math.log10(trial.params["learning_rate"]) + 4) + abs(trial.params["dropout"] - 0.1)
            records.append(Tried(**{**vars(whole(number, loss)), "trial": trial}))
        newest = sorted(each.last.val_loss for each in records[-15:] if each.last)
        return newest[len(newest) // 2]

    assert ends(sampler) < 0.7 * ends(RANDOM)


def test_whole_numbers_and_choices_are_sampled_as_such() -> None:
    search = searching(RANDOM, span("batch_size=2:32:log"), grid("schedule=constant,cosine"))
    params = study.suggest(search, []).params
    assert type(params["batch_size"]) is int and params["schedule"] in ("constant", "cosine")


def test_asha_lets_one_in_three_go_on_from_each_rung() -> None:
    search = sweep(dimensions=(RATE,), pruner=ASHA)
    records = [tried(number, {1: 3.0 - number / 10}, reason=PRUNED) for number in range(8)]
    assert study.is_to_stop(search, [*records, tried(8, {1: 2.55}, reason=None)], 8)
    assert not study.is_to_stop(search, [*records, tried(8, {1: 2.45}, reason=None)], 8)


def test_asha_judges_only_at_its_rungs() -> None:
    search = sweep(dimensions=(RATE,), pruner=ASHA)
    records = [whole(number, 1.0) for number in range(4)]
    for units, stops in ((1, True), (2, False), (3, True), (4, False), (8, False), (9, True)):
        # it led at the rungs before, and is the worst now
        losses = {unit: 0.5 if unit < units else 2.0 for unit in range(1, units + 1)}
        assert study.is_to_stop(search, [*records, tried(4, losses, reason=None)], 4) is stops, units


def test_asha_lets_a_trial_that_it_had_stopped_go_on_once_enough_others_are_worse() -> None:
    search = sweep(dimensions=(RATE,), pruner=ASHA)
    best, second = whole(0, 1.0), tried(1, {1: 1.5}, reason=PRUNED)
    few = [best, second, *(tried(number, {1: 2.0}, reason=PRUNED) for number in range(2, 5))]
    assert study.can_be_let_go_on(search, few) == []
    enough = [*few, tried(5, {1: 2.0}, reason=PRUNED)]
    assert study.can_be_let_go_on(search, enough) == [second]
    assert study.can_be_let_go_on(sweep(dimensions=(RATE,), pruner=MEDIAN), enough) == []


def test_a_trial_that_overshot_the_rung_it_was_stopped_at_does_not_go_on_for_that() -> None:
    search = sweep(dimensions=(RATE,), pruner=ASHA)
    others = [tried(number, {1: 2.0 + number / 10}, reason=PRUNED) for number in range(2, 5)]
    overshot = tried(5, {1: 9.0, 2: 9.0}, reason=PRUNED)
    assert study.can_be_let_go_on(search, [whole(0, 1.0), whole(1, 1.1), *others, overshot]) == []


def test_the_median_stops_what_is_worse_than_half_of_the_whole_trials() -> None:
    search = sweep(dimensions=(RATE,), pruner=MEDIAN)
    records = [whole(number, 1.0 + number / 10) for number in range(5)]
    assert study.is_to_stop(search, [*records, tried(5, {1: 1.25}, reason=None)], 5)
    assert not study.is_to_stop(search, [*records, tried(5, {1: 1.15}, reason=None)], 5)
    assert not study.is_to_stop(search, [*records[:3], tried(3, {1: 9.0}, reason=None)], 3)


def test_hyperband_begins_to_judge_some_trials_later_than_others() -> None:
    search = sweep(dimensions=(RATE,), pruner=HYPERBAND)
    first_stop = set()
    for number in range(40, 70):
        records = [whole(each, 1.0) for each in range(number)]
        for unit in (1, 3, 9):
            losses = dict.fromkeys(range(1, unit + 1), 2.0)
            if study.is_to_stop(search, [*records, tried(number, losses, reason=None)], number):
                first_stop.add(unit)
                break
    assert first_stop == {1, 3, 9}


def test_a_trial_that_failed_is_neither_good_nor_in_the_way() -> None:
    failed = Tried(**{**vars(tried(0, {})), "outcome": Outcome(state=JobState.FAILED, reason="error"), "settled": None})
    assert study.suggest(searching(TPE), [failed, whole(1, 1.0)]).number == 2


def test_what_matters_has_the_largest_importance() -> None:
    search = sweep(dimensions=(grid("learning_rate=1e-5,1e-4,1e-3,1e-2"), grid("seed=1,2,3,4")))
    points = [search.point(number) for number in range(16)]
    records = [whole(n, 100 * each["learning_rate"] + each["seed"] / 1e4, each) for n, each in enumerate(points)]
    shares = study.importances(search, records)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert next(iter(shares)) == "learning_rate" and shares["learning_rate"] > 0.7
    assert study.importances(search, records[:3]) == {}
