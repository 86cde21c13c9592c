"""A job as Flower holds it: what events and Redis's record make of it, in whatever order they come."""

import json
import pickle
from typing import Any

import pytest
from celery.events.state import State

from gptjobs import broker
from gptjobs.flower import app
from gptjobs.flower.events import JobEvents
from gptjobs.flower.pages import COLUMNS, place, row
from gptjobs.flower.task import JobTask
from gptjobs.job import Job, JobSpec, JobState

WORKER = "worker@host"


class Events:
    """Celery's state of a cluster, told of one job."""

    def __init__(self) -> None:
        self._state = State()
        self._state.Task = JobTask
        self._clock = 0

    def tell(self, kind: str, **fields: Any) -> None:
        self._clock += 1
        event = {"type": f"task-{kind}", "uuid": "3f9a", "hostname": WORKER, "clock": self._clock, **fields}
        self._state.event({**event, "timestamp": 1000.0 + self._clock, "local_received": 1000.0 + self._clock})

    def progress(self, step: int, token: int = 1, **changes: Any) -> None:
        """As a worker sends it, by way of JSON."""
        told = job(token=token, progress={"step": step, "end_step": 400, "stage": "training"}, **changes)
        self.tell("progress", token=token, job=json.loads(json.dumps(told.to_dict())))

    @property
    def task(self) -> JobTask:
        return self._state.tasks["3f9a"]

    @property
    def shown(self) -> tuple[str, int | None]:
        return self.task.state, self.task.step


def job(state: JobState = JobState.RUNNING, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "spec": JobSpec(id="3f9a", kind="train", name="seen", submitted_at=900.0),
        "serial": 1, "token": 1, "beat": 3, "attempt": 1, "fruitless": {}, "priority": 5,
        "cause": None, "worker": WORKER, "used_device": "cpu",
        "reason": None, "progress": {"step": 100, "end_step": 400, "train_loss": 2.5},
    }  # fmt: skip
    return Job(state=state, **{**values, **changes})


def take(task: JobTask, found: Job) -> None:
    task.take(found.to_dict(), found.token)


@pytest.fixture
def events() -> Events:
    """A job that was sent, taken and started, and is at step 20."""
    made = Events()
    for kind in ("sent", "received", "started"):
        made.tell(kind, name=broker.TASK, args="('seen')")
    made.progress(20)
    return made


def test_progress_fills_the_fields_and_leaves_the_job_started(events: Events) -> None:
    events.progress(30)
    assert events.shown == ("STARTED", 30)
    assert (events.task.job, events.task.job_state, events.task.device) == ("seen", "running", "cpu")
    assert events.task.percent == 7.5
    assert events.task.as_dict()["step"] == 30


@pytest.mark.parametrize(
    ("end", "state"), [("succeeded", "SUCCESS"), ("failed", "FAILURE"), ("revoked", "REVOKED"), ("retried", "RETRY")]
)
def test_progress_of_an_attempt_that_ended_is_dropped(events: Events, end: str, state: str) -> None:
    events.tell(end, **({"token": 1} if end in ("revoked", "retried") else {}))
    events.progress(30)
    assert events.shown == (state, 20)


def test_progress_of_an_older_attempt_is_dropped(events: Events) -> None:
    events.tell("retried", token=1)
    events.tell("sent")
    events.tell("started")
    events.progress(5, token=3)
    events.progress(30, token=1)
    assert events.shown == ("STARTED", 5)


def test_progress_of_an_attempt_that_was_retried_is_dropped_also_when_it_waits_again(events: Events) -> None:
    events.tell("retried", token=1)
    events.tell("sent")
    events.progress(30)
    assert events.shown == ("PENDING", 20)


def test_an_end_of_an_older_attempt_is_dropped(events: Events) -> None:
    events.progress(5, token=3)
    events.tell("retried", token=1)
    events.tell("revoked", token=1)
    assert events.shown == ("STARTED", 5)


def test_a_job_that_ended_shows_no_stage_and_no_time_left(events: Events) -> None:
    events.progress(30, token=2)
    events.tell("succeeded")
    assert (events.task.stage, events.task.eta_s, events.task.job_state) == (None, None, None)


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (JobState.QUEUED, "PENDING"),
        (JobState.RUNNING, "STARTED"),
        (JobState.PAUSING, "STARTED"),
        (JobState.PAUSED, "RETRY"),
        (JobState.CANCELLING, "STARTED"),
        (JobState.FINISHED, "SUCCESS"),
        (JobState.DIVERGED, "FAILURE"),
        (JobState.FAILED, "FAILURE"),
        (JobState.CANCELLED, "REVOKED"),
    ],
)
def test_a_record_makes_a_job_that_flower_never_heard_of(state: JobState, shown: str) -> None:
    task = JobTask("3f9a")
    take(task, job(state))
    assert (task.state, task.step, task.job, task.name) == (shown, 100, "seen", broker.TASK)
    assert task.worker.hostname == WORKER and task.timestamp == 900.0


def test_a_record_tells_an_end_whose_event_was_lost(events: Events) -> None:
    take(events.task, job(JobState.FINISHED))
    assert events.shown == ("SUCCESS", 100)


def test_a_record_that_was_read_before_the_end_is_dropped(events: Events) -> None:
    events.tell("revoked", token=1)
    take(events.task, job(JobState.CANCELLING))
    assert events.shown == ("REVOKED", 20)


def test_a_worker_that_heard_of_a_job_and_did_not_get_it_is_not_shown(events: Events) -> None:
    take(events.task, job(worker="other@host", token=2))
    events.tell("received")
    assert row(events.task)["worker"] == "other@host"


def test_a_record_brings_a_job_back_whose_lease_was_taken_away(events: Events) -> None:
    events.tell("failed")
    take(events.task, job(JobState.QUEUED, token=2))
    assert events.task.state == "PENDING"


def test_a_job_survives_persistent_mode(events: Events) -> None:
    back = pickle.loads(pickle.dumps(events.task))
    assert (back.state, back.step, back.job) == ("STARTED", 20, "seen")
    back.event("progress", 1.0, 1.0, {"job": job(token=0).to_dict(), "token": 0})
    assert back.step == 20


def test_flower_is_built_with_these_jobs_and_these_doors() -> None:
    import flower.app
    from flower.views.tasks import visible_task_columns
    from tornado.options import options

    assert flower.app.Events is JobEvents
    assert app.main == "gptjobs"
    assert visible_task_columns(options.tasks_columns) == list(COLUMNS.items())


def shown_as(**values: Any) -> JobTask:
    task = JobTask("3f9a")
    task.__dict__.update(values)
    return task


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, ""),
        ({"stage": "encoding", "done": 0.4}, "encoding 40%"),
        ({"stage": "loading"}, "loading"),
        ({"stage": "training", "step": 1510, "end_step": 3500}, "1510/3500"),
        ({"stage": "saving", "step": 1500, "end_step": 3500}, "1500/3500 saving"),
    ],
)
def test_the_bar_says_how_far_a_job_is(values: dict[str, Any], words: str) -> None:
    assert row(shown_as(**values))["step"] == words


def test_columns_sort_by_number_and_those_without_one_stand_together() -> None:
    tasks = [shown_as(step=each) for each in (1000, None, 925, 20)]
    assert [each.step for each in sorted(tasks, key=lambda each: place(each, "step"))] == [None, 20, 925, 1000]
