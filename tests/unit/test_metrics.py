"""What Flower and a worker expose to Prometheus: all that is said of them, of jobs as they are, and no more."""

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gptjobs import durable, metrics, record, settings
from gptjobs.config import Given, Plan
from gptjobs.errors import UsageError
from gptjobs.flower import board
from gptjobs.flower import metrics as of_flower
from gptjobs.flower.board import Board
from gptjobs.flower.metrics import FlowerMetrics, Watch
from gptjobs.job import Cause, Job, JobSpec, JobState, Outcome, new_job
from gptjobs.layout import Layout
from gptjobs.leases import Lease, Unreachable
from gptjobs.presence import Presence
from gptjobs.progress import Alert, CheckpointWritten, StageBegan, encode
from gptjobs.record import PastAttempt
from tests.unit.conftest import NANO, NOON, begin
from tests.unit.test_alerts import promtool
from tests.unit.test_flower import job
from tests.unit.test_runs import Redis, line, put
from worker.host import Host
from worker.lease import HeldLease
from worker.meter import JobMeter
from worker.metrics import WorkerMetrics
from worker.tasks import Station

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_docs_list_every_metric_with_its_labels_and_source() -> None:
    rows = [row.strip("| ").split(" | ") for row in re.findall(r"^\| `gptjobs_.*$", DOCS.read_text(), re.M)]
    assert [(name.strip("`"), labels.replace("`", ""), source, help) for name, labels, _, source, help in rows] == [
        (each.name, ", ".join(each.labels), ", ".join(each.sources), each.help) for each in metrics.METRICS
    ]
    units = {name.strip("`"): unit for name, _, unit, _, _ in rows}
    assert {unit for name, unit in units.items() if re.search("_seconds(_total)?$", name)} == {"seconds"}
    assert {unit for name, unit in units.items() if name.endswith("_bytes")} == {"bytes"}


def exposed(collector: Any) -> str:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


def families(text: str) -> set[str]:
    return set(re.findall(r"^# HELP (\S+)", text, re.M))


class Told(Redis):
    """What Flower's metrics ask Redis for."""

    def __init__(self, *jobs: Job) -> None:
        super().__init__(*jobs)
        self.workers: list[Presence] = []

    def workers_among(self, names: Any) -> list[Presence]:
        return [each for each in self.workers if each.name in names]


def looking(layout: Layout, *jobs: Job) -> tuple[FlowerMetrics, Told]:
    store = Told(*jobs)
    made = Board(store, layout)  # type: ignore[arg-type]  # what a board asks of it is there
    return FlowerMetrics(store, layout, made), store  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def each_look_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "LOOK_AGAIN_S", 0.0)


def values(collector: Any, metric: str, *labels: str) -> dict[tuple[str, ...], float]:
    """By these labels, or by all that it has."""
    return {
        tuple(sample.labels[each] for each in labels or sample.labels): sample.value
        for family in collector.collect()
        for sample in family.samples
        if sample.name == metric
    }


PRESENT = Presence(
    name="worker@host", host="host", version="0", queues=["cpu", "any", "cpu.2", "any.2"], slots=["cpu", "cpu"],
    busy=1, jobs=["3f9a"], started_at=NOON,
)  # fmt: skip
WRITTEN = CheckpointWritten(name="a.pt", step=20, tokens=9, size=9, val_loss=1.5, stall_s=0.25)


TRAINS = {
    "step": 20, "end_step": 400, "tokens": 9, "train_loss": 2.5, "val_loss": 2.6, "learning_rate": 1e-4,
    "grad_norm": 0.5, "tokens_per_s": 1000.0, "eta_s": 12.0, "stage": "training",
}  # fmt: skip
PLAN = Plan(job="3f9a", kind="train", settled=NANO, data_name="text", data_digest=None, parent=None)
SPIKE = Alert(name="spike", step=19, reason="it rose")


def trained(layout: Layout, **changes: Any) -> Job:
    """A job that trains, with lines, an alert and a checkpoint on record."""
    lines = [line(10, 3.0), encode(SPIKE, seconds=NOON), encode(WRITTEN, seconds=NOON), line(20, 2.5)]
    put(layout, "3f9a", *lines)
    durable.create(layout.config_file("3f9a"), durable.to_json(PLAN.to_dict()))
    return job(progress=TRAINS, **changes)


def test_flower_exposes_what_is_said_of_it(layout: Layout) -> None:
    found, store = looking(layout, trained(layout))
    store.workers = [PRESENT]
    found.look({"worker@host", "gone@host"})
    assert families(exposed(found)) == {each.name for each in metrics.METRICS if metrics.FLOWER in each.sources}
    assert values(found, "gptjobs_job_train_loss") == {("3f9a", "seen"): 2.5}
    assert values(found, "gptjobs_job_checkpoint_step", "job_id") == {("3f9a",): 20}
    assert values(found, "gptjobs_job_checkpoint_stall_seconds", "job_id") == {("3f9a",): 0.25}
    assert values(found, "gptjobs_job_checkpoint_interval_steps", "job_id") == {("3f9a",): 500}
    assert values(found, "gptjobs_job_alerts_total", "alert") == {
        (name,): float(name == "spike") for name in metrics.ALERTS
    }
    assert values(found, "gptjobs_slots") == {("cpu",): 2, ("cuda",): 0, ("mps",): 0}
    assert values(found, "gptjobs_slots_busy")["cpu",] == values(found, "gptjobs_workers")["cpu",] == 1


def test_flower_tells_how_many_jobs_wait_in_each_queue_and_who_takes_them(layout: Layout) -> None:
    now = time.time()
    two = JobSpec(id="c", kind="train", device="cpu", submitted_at=now, overrides={"gpus": Given(2, "--gpus")})
    asked = [JobSpec(id="a", kind="train", device="cuda", submitted_at=now), two]
    found, store = looking(layout, *(new_job(each) for each in asked))
    store.workers = [PRESENT]
    found.look({"worker@host"})
    waits = values(found, "gptjobs_jobs", "queue", "state")
    assert {queue: count for (queue, state), count in waits.items() if state == "queued"} == {
        "any": 0, "cpu": 0, "cpu.2": 1, "cuda": 1, "mps": 0,
    }  # fmt: skip
    assert sum(waits.values()) == 2
    assert values(found, "gptjobs_job_info") == {}  # nothing of them trains
    assert values(found, "gptjobs_queue_workers") == {
        ("any",): 1, ("cpu",): 1, ("cpu.2",): 1, ("cuda",): 0, ("mps",): 0,
    }  # fmt: skip


def test_restarts_are_told_by_what_ended_the_attempt_before(layout: Layout) -> None:
    found, store = looking(layout, trained(layout))
    begin(layout, "3f9a", 2)
    ended = {"schema": 1, "kind": "ended", **Outcome(state=JobState.QUEUED, reason="x", cause=Cause.SPIKE).to_dict()}
    layout.attempt_lines("3f9a", 2).write_text(json.dumps(ended) + "\n" + encode(SPIKE, seconds=NOON) + "\n")
    begin(layout, "3f9a", 3)
    store.jobs["3f9a"] = job(progress=TRAINS, token=3, attempt=3)
    found.look(())
    assert values(found, "gptjobs_job_restarts_total", "cause") == {("lost host",): 1, ("spike",): 1}
    assert values(found, "gptjobs_job_alerts_total", "alert")["spike",] == 2
    assert values(found, "gptjobs_job_attempt") == {("3f9a", "seen"): 3}
    # this attempt has not written one yet: it would go back to where it began
    assert values(found, "gptjobs_job_checkpoint_step", "job_id") == {("3f9a",): 0}


def test_only_jobs_that_train_or_did_a_moment_ago_have_series(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        put(layout, f"old{number}", line(10, 3.0), state=JobState.FINISHED, age=3600)
    found, store = looking(layout, trained(layout))
    found.look(())
    assert set(values(found, "gptjobs_job_step", "job_id")) == {("3f9a",)}
    assert values(found, "gptjobs_jobs", "state", "queue")["finished", "any"] == 30
    count = exposed(found).count("\n")

    record.write_outcome(layout, "3f9a", Outcome(state=JobState.DIVERGED, reason="spike"), 1)
    store.jobs["3f9a"] = job(JobState.DIVERGED, progress=TRAINS)
    found.look(())
    assert set(values(found, "gptjobs_job_info", "state")) == {("diverged",)}
    assert values(found, "gptjobs_job_alerts_total", "alert")["spike",] == 1
    for age in ("lease_age_seconds", "progress_age_seconds", "checkpoint_age_seconds"):
        assert values(found, f"gptjobs_job_{age}") == {}
    assert exposed(found).count("\n") < count
    monkeypatch.setattr(of_flower, "SHOWN_ON_S", 0.0)
    found.look(())
    assert values(found, "gptjobs_job_info") == {}


def test_without_redis_flower_tells_on_of_those_that_were_trained(layout: Layout) -> None:
    found, store = looking(layout, trained(layout))
    store.is_away = True
    found.look(())
    assert values(found, "gptjobs_job_progress_age_seconds") == {}, "on record a lost one looks like one that trains"
    store.is_away = False
    found.look(())
    store.is_away = True
    found.look({"worker@host"})
    assert values(found, "gptjobs_redis_up") == {(): 0}
    assert values(found, "gptjobs_job_train_loss", "job_id") == {("3f9a",): 2.5}
    assert len(values(found, "gptjobs_job_progress_age_seconds")) == 1
    assert values(found, "gptjobs_job_lease_age_seconds") == values(found, "gptjobs_workers") == {}
    store.is_away = False
    found.look(())
    assert values(found, "gptjobs_redis_up") == {(): 1}
    assert len(values(found, "gptjobs_job_lease_age_seconds")) == 1


def test_a_look_that_is_held_up_holds_up_no_other(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = looking(layout, trained(layout))
    found.look(())
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(self: Board) -> Board:
        hangs.set()
        goes_on.wait(20)
        return self

    monkeypatch.setattr(Board, "look", hang)
    first = threading.Thread(target=found.look, args=((),))
    first.start()
    assert hangs.wait(20)
    found.look(())
    assert first.is_alive()
    assert values(found, "gptjobs_job_step", "job_id") == {("3f9a",): 20}
    goes_on.set()
    first.join()


def test_what_flower_counted_stands_while_the_root_is_away(layout: Layout) -> None:
    found, _ = looking(layout, trained(layout))
    found.look(())
    away = layout.outputs.rename(layout.root / "away")
    found.look(())
    assert values(found, "gptjobs_job_alerts_total", "alert")["spike",] == 1
    away.rename(layout.outputs)


def test_an_age_begins_anew_when_what_is_told_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(of_flower.time, "monotonic", lambda: now)
    watch = Watch()
    assert watch.age_s("a", (1, 5)) == 0
    now = 107.0
    assert watch.age_s("a", (1, 5)) == 7
    assert watch.age_s("b", (1, 5)) == 0
    assert watch.age_s("a", (1, 6)) == 0
    watch.keep({"b"})
    now = 110.0
    assert watch.age_s("a", (1, 6)) == 0  # forgotten
    assert watch.age_s("b", (1, 5)) == 3


def station_of(layout: Layout) -> Station:
    host = Host(worker="worker@host", slots=("cpu", "cpu"))
    return Station(host=host, layout=layout, store=None, app=None)  # type: ignore[arg-type]  # nobody asks them


def held(layout: Layout) -> HeldLease:
    lease, spec = Lease(job="3f9a", token=1, nonce="n", attempt=1), job().spec
    made = HeldLease(None, lease, spec, layout, "worker@host", "cpu", lambda *_: None)  # type: ignore[arg-type]
    made.show(TRAINS)
    return made


def test_a_worker_exposes_what_is_said_of_it_and_keeps_what_it_counted(layout: Layout) -> None:
    station = station_of(layout)
    station.jobs["3f9a"] = 1
    found, meter = WorkerMetrics(station), JobMeter()
    past = PastAttempt(attempt=begin(layout, "3f9a", 1), ended=None, progress={}, alerts=[{"name": "spike"}])
    with station.meters.of(meter, job(), held(layout)):
        meter.begin(PLAN, 0, [past])
        for each in (StageBegan(stage="training"), WRITTEN, SPIKE, Alert(name="of a later version", step=1, reason="")):
            meter.note(each)
        assert families(exposed(found)) == {each.name for each in metrics.METRICS if metrics.WORKER in each.sources}
        assert values(found, "gptjobs_job_restarts_total", "cause") == {("lost host",): 1}
        assert values(found, "gptjobs_job_alerts_total", "alert")["spike",] == 2
        assert values(found, "gptjobs_worker_alerts_total", "alert")["spike",] == 1
        assert values(found, "gptjobs_worker_alerts_total", "alert")["other",] == 1
        assert values(found, "gptjobs_job_checkpoint_step", "job_id") == {("3f9a",): 20}
    for attempts in (1, 2):
        assert values(found, "gptjobs_worker_attempts_begun_total", "worker") == {("worker@host",): attempts}
        assert values(found, "gptjobs_worker_checkpoints_total", "worker") == {("worker@host",): attempts}
        assert values(found, "gptjobs_worker_checkpoint_stall_seconds_total", "worker") == {
            ("worker@host",): 0.25 * attempts
        }
        assert values(found, "gptjobs_job_step") == {}
        with station.meters.of(again := JobMeter(), job(), held(layout)):
            again.note(WRITTEN)


def test_what_earlier_attempts_had_does_not_look_as_if_it_came_now(layout: Layout) -> None:
    station = station_of(layout)
    found, meter = WorkerMetrics(station), JobMeter()
    with station.meters.of(meter, job(), held(layout)):
        assert values(found, "gptjobs_job_alerts_total") == {}, "a nought here, and Prometheus would see it grow"
        meter.begin(PLAN, 0, [])
        assert values(found, "gptjobs_job_alerts_total", "alert")["spike",] == 0


def test_an_attempt_that_was_fenced_may_end_after_the_next_one_began_here(layout: Layout) -> None:
    station = station_of(layout)
    found, fenced, newer = WorkerMetrics(station), JobMeter(), JobMeter()
    with station.meters.of(newer, job(), held(layout)):
        with station.meters.of(fenced, job(), held(layout)):
            fenced.note(WRITTEN)
        newer.note(WRITTEN)
        assert len(values(found, "gptjobs_job_step")) == 1
    assert values(found, "gptjobs_worker_checkpoints_total", "worker") == {("worker@host",): 2}


def test_promtool_takes_what_both_expose(layout: Layout) -> None:
    of_all, store = looking(layout, trained(layout))
    store.workers = [PRESENT]
    of_all.look({"worker@host"})
    promtool("check", "metrics", stdin=exposed(of_all))
    station = station_of(layout)
    with station.meters.of(meter := JobMeter(), job(), held(layout)):
        meter.begin(PLAN, 0, [])
        meter.note(WRITTEN)
        promtool("check", "metrics", stdin=exposed(WorkerMetrics(station)))


def test_a_lease_is_as_old_as_the_beat_that_redis_confirmed_last(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("worker.lease.time.monotonic", lambda: now)
    made = held(layout)
    now = 107.0
    made._note_offline(Unreachable("timed out"))
    assert made.age_s == 7
    made._note_online()
    assert made.age_s == 0


def test_a_root_that_hangs_takes_no_second_scrape(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    found = WorkerMetrics(station_of(layout))
    assert len(values(found, "gptjobs_worker_root_free_bytes")) == 1
    with found._asks_root:  # by a scrape that still waits
        assert values(found, "gptjobs_worker_root_free_bytes") == {}
        assert len(values(found, "gptjobs_worker_slots")) == 1


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("5556", ("127.0.0.1", 5556)),
        ("0.0.0.0:5556", ("0.0.0.0", 5556)),
        (":5556", ("127.0.0.1", 5556)),
        ("[::1]:0", ("::1", 0)),
        ("gpu-1.example:80", ("gpu-1.example", 80)),
    ],
)
def test_metrics_are_served_on_loopback_unless_a_host_is_named(text: str, address: tuple[str, int]) -> None:
    assert settings.metrics_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "5556:", "-1", "65536", "1.5", "host:٣"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="HOST"):
        settings.metrics_address(text)
