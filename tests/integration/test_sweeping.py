"""What is next of a sweep, decided by whoever looks: once, also by two at once, and after a crash or a flush."""

import json
import threading
from typing import Any

import pytest

from gptjobs import broker, record, repair, sweeping, trials
from gptjobs.broker import App
from gptjobs.job import JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.leases import LeaseStore
from gptjobs.presence import Presence
from gptjobs.store import Store
from gptjobs.sweep import GRID, TPE, Sweep, Trial, grid, job_of_trial, span
from tests.unit.conftest import NOON, typed
from worker import sweeps

SPAN = (span("learning_rate=1e-5:1e-2:log"),)


@pytest.fixture
def app(redis_url: str) -> App:
    return broker.connect(redis_url)


@pytest.fixture
def lease_store(redis_url: str) -> LeaseStore:
    return LeaseStore(redis_url)


def submitted(store: Store, layout: Layout, **changes: Any) -> Sweep:
    values: dict[str, Any] = {
        "id": "5a0b1c2d3e4f",
        "overrides": typed(model="nano", data="sources/text.md", steps=10),
        "dimensions": SPAN,
        "sampler": TPE,
        "trials": 6,
        "parallel": 6,
        "submitted_at": NOON,
    }
    sweep = Sweep(**{**values, **changes})
    sweeping.submit(store, layout, sweep)
    return sweep


def end(layout: Layout, job: str) -> None:
    record.write_outcome(layout, job, Outcome(state=JobState.FAILED, reason="error"), 0)


def test_all_that_there_is_room_for_is_submitted_and_no_more(
    store: Store, lease_store: LeaseStore, layout: Layout, app: App
) -> None:
    sweep = submitted(store, layout, parallel=2)
    for _ in range(3):
        sweeps.advance(lease_store, layout, app, sweep.id)
        assert len(store.all()) == 2
    end(layout, job_of_trial(sweep.id, 0, 0))
    sweeps.advance(lease_store, layout, app, sweep.id)
    assert [each.spec.trial for each in sorted(store.all(), key=lambda each: each.spec.trial or 0)] == [0, 1, 2]


def test_left_alone_a_sweep_has_as_many_trials_at_once_as_there_are_slots(
    store: Store, lease_store: LeaseStore, layout: Layout, app: App
) -> None:
    for name, queues, slots in (("a", ["cpu", "any"], ["cpu", "cpu"]), ("b", ["cuda", "any"], ["cuda:0"])):
        store.announce(
            Presence(
                name=f"{name}@host",
                host="host",
                version="0",
                queues=queues,
                slots=slots,
                busy=0,
                jobs=[],
                started_at=NOON,
            )
        )
    sweep = submitted(store, layout, parallel=None)
    sweeps.advance(lease_store, layout, app, sweep.id)
    assert len(store.all()) == 3
    on_cpus = submitted(store, layout, parallel=None, id="6a0b1c2d3e4f", device="cpu")
    sweeps.advance(lease_store, layout, app, on_cpus.id)
    assert len([each for each in store.all() if each.spec.sweep == on_cpus.id]) == 2


def test_workers_that_look_at_once_make_every_trial_once(
    store: Store, redis_url: str, layout: Layout, app: App
) -> None:
    sweep = submitted(store, layout, trials=24, parallel=24)
    threads = [
        threading.Thread(target=sweeps.advance, args=(LeaseStore(redis_url), layout, app, sweep.id)) for _ in range(6)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    sweeps.advance(LeaseStore(redis_url), layout, app, sweep.id)
    tried = trials.read(layout, sweep.id)
    assert [each.trial.number for each in tried] == list(range(24))
    assert [len(each.jobs) for each in tried] == [1] * 24
    assert {each.spec.id for each in store.all()} == {each.job for each in tried}
    for each in tried:
        assert store.get(each.job).spec.overrides["learning_rate"].value == each.trial.params["learning_rate"]


def test_a_sample_that_a_crash_left_without_a_job_is_submitted_as_it_was_written_down(
    store: Store, lease_store: LeaseStore, layout: Layout, app: App
) -> None:
    sweep = submitted(store, layout, trials=1)
    trials.write_trial(layout, sweep.id, Trial(number=0, params={"learning_rate": 0.00123}))
    sweeps.advance(lease_store, layout, app, sweep.id)
    (job,) = store.all()
    assert job.spec.overrides["learning_rate"].value == 0.00123


def test_a_trial_whose_job_redis_did_not_take_is_submitted_again(
    store: Store, lease_store: LeaseStore, layout: Layout, app: App
) -> None:
    sweep = submitted(store, layout, trials=1)
    sweeps.advance(lease_store, layout, app, sweep.id)
    (job,) = store.all()
    store._redis.flushall()
    sweeps.advance(lease_store, layout, app, sweep.id)
    assert [each.spec for each in store.all()] == [job.spec]


def test_a_trial_cancelled_by_a_client_without_the_root_does_not_keep_its_sweep(
    store: Store, lease_store: LeaseStore, layout: Layout, app: App
) -> None:
    sweep = submitted(store, layout, trials=2, parallel=1)
    sweeps.advance(lease_store, layout, app, sweep.id)
    store.ask("cancel", job_of_trial(sweep.id, 0, 0), "cancelled")
    sweeps.advance(lease_store, layout, app, sweep.id)
    sweeps.advance(lease_store, layout, app, sweep.id)
    assert [each.state for each in trials.read(layout, sweep.id)] == ["cancelled", "going on"]


def test_a_sweep_of_a_client_without_the_root_that_cannot_begin_ends_with_the_reason(
    store: Store, lease_store: LeaseStore, layout: Layout, app: App
) -> None:
    for number, wrong in enumerate(({"parent": "nowhere@best"}, {"overrides": typed(n_head=7, data="a.md")})):
        values = {"id": f"5a0b1c2d3e{number}f", "dimensions": SPAN, "sampler": TPE, "trials": 2, "submitted_at": NOON}
        sweep = Sweep(**{**values, **wrong})
        store.begin_sweep(sweep)
        sweeps.see_to(lease_store, layout, app, sweep)
        assert sweeping.state(layout, sweep) == trials.FINISHED and store.sweeps() == []
        assert "could not begin" in layout.summary_file(sweep.id).read_text()


def test_a_sweep_whose_trials_have_all_ended_says_what_it_found_and_leaves_redis(
    store: Store, lease_store: LeaseStore, layout: Layout, app: App
) -> None:
    sweep = submitted(store, layout, trials=2)
    sweeps.advance(lease_store, layout, app, sweep.id)
    assert store.sweeps() == [sweep] and sweeping.state(layout, sweep) == trials.GOING_ON
    for number in range(2):
        end(layout, job_of_trial(sweep.id, number, 0))
    sweeps.advance(lease_store, layout, app, sweep.id)
    assert store.sweeps() == [] and sweeping.state(layout, sweep) == trials.FINISHED
    assert "No two trials can be compared" in layout.summary_file(sweep.id).read_text()


def test_a_stopped_sweep_submits_nothing_until_it_is_started(
    store: Store, lease_store: LeaseStore, layout: Layout, app: App
) -> None:
    sweep = submitted(store, layout, trials=2, parallel=1)
    sweeps.advance(lease_store, layout, app, sweep.id)
    assert sweeping.stop(store, layout, sweep) == [job_of_trial(sweep.id, 0, 0)]
    end(layout, job_of_trial(sweep.id, 0, 0))
    sweeps.advance(lease_store, layout, app, sweep.id)
    assert len(store.all()) == 1 and store.sweeps() == []
    sweeping.start(store, layout, app, sweep)
    assert store.sweeps() == [sweep]
    sweeps.advance(lease_store, layout, app, sweep.id)
    assert len(store.all()) == 2


def test_after_a_flush_repair_knows_the_sweeps_that_are_to_go_on(
    store: Store, layout: Layout, lease_store: LeaseStore, app: App
) -> None:
    going_on = submitted(store, layout)
    stopped = submitted(store, layout, id="6a0b1c2d3e4f")
    sweeping.stop(store, layout, stopped)
    assert repair.missing_sweeps(store, layout) == []
    store._redis.flushall()
    assert repair.missing_sweeps(store, layout) == [going_on]


def test_what_is_no_sweep_in_redis_hides_no_other(store: Store, layout: Layout) -> None:
    sweep = submitted(store, layout, dimensions=(grid("seed=1,2"),), sampler=GRID)
    others = ["{", "[]", "{}", '{"schema": 1}', '{"schema": 99, "id": "x"}', '{"schema": "a"}']
    for wrong in (
        {"id": "../../../tmp/elsewhere"},
        {"id": 7},
        {"name": "a/b"},
        {"sampler": "guess"},
        {"trials": -1},
        {"trials": "many"},
        {"overrides": {"no_such": {"value": 1, "origin": ""}}},
        {"dimensions": [{"name": "no_such", "choices": [1]}]},
        {"dimensions": [{"name": "data", "choices": ["/etc/passwd"]}]},
        {"dimensions": [{"name": "seed", "choices": [], "low": "a", "high": "b"}]},
        {"submitted_at": 1e300},
        {"overrides": {"learning_rate": {"value": float("inf"), "origin": ""}}},
        {"overrides": {"data": {"value": ["a"], "origin": ""}}},
        {"overrides": []},
        {"device": "toaster"},
        {"priority": 1e9},
        {"data_digest": "../../x"},
    ):
        others.append(json.dumps({**sweep.to_dict(), **wrong}))
    for number, garbage in enumerate(others):
        store._redis.hset("gptjobs:sweeps", f"garbage{number}", garbage)
    assert store.sweeps() == [sweep]
