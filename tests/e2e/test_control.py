"""Requests to jobs that train and to the workers that train them, with real processes."""

import os
import signal

from gptjobs import checkpoint
from gptjobs.job import Cause, JobState
from gptjobs.store import Store
from tests.conftest import Commands, Workers, eventually
from tests.e2e.test_loss_of_hosts import newest_step, submit, trainers


def trains(store: Store, job: str, step: int = 10) -> bool:
    found = store.get(job)
    return found.state is JobState.RUNNING and found.progress.get("step", 0) >= step


def test_a_paused_job_frees_its_device_and_goes_on_elsewhere_from_its_checkpoint(
    gptjobs: Commands, workers: Workers, store: Store
) -> None:
    first = workers.start("first")
    job = submit(gptjobs)
    eventually(lambda: trains(store, job))
    assert "it writes a checkpoint first" in gptjobs.ok("pause", job)
    eventually(lambda: store.get(job).state is JobState.PAUSED)
    stopped_at = newest_step(gptjobs, job)
    assert stopped_at >= 10 and not trainers(job)
    assert all(each.busy == 0 for each in eventually(lambda: [w for w in store.workers() if not w.jobs]))
    gptjobs.ok("worker", "drain", "first")
    assert first.wait(30) == 0

    workers.start("second")
    gptjobs.ok("unpause", job)
    eventually(lambda: trains(store, job, stopped_at + 1))
    assert checkpoint.attempts(gptjobs.layout, job)[-1].start_step == stopped_at
    assert (store.get(job).worker or "").startswith("second@")


def test_cancelled_now_a_job_ends_without_another_checkpoint(gptjobs: Commands, workers: Workers, store: Store) -> None:
    workers.start()
    job = submit(gptjobs)
    eventually(lambda: newest_step(gptjobs, job) >= 50)
    (trainer,) = trainers(job)
    os.kill(trainer, signal.SIGSTOP)  # one that cannot write a checkpoint any more
    gptjobs.ok("cancel", "--now", job)
    assert gptjobs("wait", job, "--timeout", "30").returncode == 10
    assert newest_step(gptjobs, job) % 50 == 0
    assert not trainers(job)

    again = gptjobs.ok("retry", job)
    eventually(lambda: trains(store, again, newest_step(gptjobs, job) + 1))
    (start,) = checkpoint.attempts(gptjobs.layout, again)
    assert start.start == checkpoint.counting(gptjobs.layout, job)[-1].name
    planned = 100_000
    assert store.get(again).progress["end_step"] == planned
    gptjobs.ok("cancel", "--now", again)


def test_a_drained_workers_job_is_taken_elsewhere(gptjobs: Commands, workers: Workers, store: Store) -> None:
    first = workers.start("first")
    job = submit(gptjobs)
    eventually(lambda: trains(store, job))
    workers.start("second")
    said = gptjobs("worker", "drain", "first")
    assert (said.returncode, "1 of its jobs go back" in said.stderr) == (0, True), said.stderr
    assert first.wait(30) == 0
    stopped_at = checkpoint.attempts(gptjobs.layout, job)[-1].start_step or newest_step(gptjobs, job)
    eventually(lambda: trains(store, job, stopped_at + 1))
    assert (store.get(job).worker or "").startswith("second@")
    assert store.get(job).attempt == 2


def test_a_stopped_worker_ends_at_once_and_its_job_waits(gptjobs: Commands, workers: Workers, store: Store) -> None:
    worker = workers.start()
    job = submit(gptjobs)
    eventually(lambda: newest_step(gptjobs, job) >= 50)
    (trainer,) = trainers(job)
    os.kill(trainer, signal.SIGSTOP)
    gptjobs.ok("worker", "stop", "worker", "--timeout", "30")
    assert worker.wait(30) == 0
    waits = store.get(job)
    assert (waits.state, waits.cause, waits.fruitless) == (JobState.QUEUED, Cause.STOPPED, {})
    assert not trainers(job)


def test_a_second_sigterm_is_immediate_also_with_a_trainer_that_does_not_stop(
    gptjobs: Commands, workers: Workers, store: Store
) -> None:
    worker = workers.start()
    job = submit(gptjobs)
    eventually(lambda: newest_step(gptjobs, job) >= 50)
    (trainer,) = trainers(job)
    os.kill(trainer, signal.SIGSTOP)
    worker.send_signal(signal.SIGTERM)
    eventually(lambda: "shutdown" in workers.log())
    assert worker.poll() is None
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(15) == 0
    assert store.get(job).state is JobState.QUEUED
    assert not trainers(job)
