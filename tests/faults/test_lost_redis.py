"""Redis that is killed, away, flushed or full: training goes on, and nothing that was queued is lost."""

import os
import signal
import time

import pytest

from gptjobs import checkpoint
from tests.conftest import eventually
from tests.faults.scene import TAKEN_OVER_S, TRAINS_ON, Scene, Worker


@pytest.mark.parametrize("away_s", [5, pytest.param(60, marks=pytest.mark.long)])
def test_training_goes_on_while_redis_is_away_and_the_queue_is_intact_after(scene: Scene, away_s: float) -> None:
    worker = scene.worker()
    job = scene.submit(TRAINS_ON)
    scene.trains(job)
    waits, cancelled = (scene.submit(["step"], name=name, steps=1) for name in ("waits", "cancelled"))
    scene.gptjobs.ok("cancel", cancelled)
    scene.server.kill()
    away_since = time.monotonic()
    while time.monotonic() - away_since < away_s:
        scene.saves(job, step=max(scene.saved(job), default=0) + 10)
    assert "goes on without it" in worker.log
    scene.server.start()
    eventually(lambda: "answers again" in worker.log)
    assert [scene.state(each) for each in (job, waits, cancelled)] == ["running", "queued", "cancelled"]
    scene.gptjobs.ok("cancel", job)
    assert scene.ends(waits) == "finished"
    assert scene.job(job).attempt == 1
    assert scene.weights_are_undisturbed(job)


def test_a_checkpoint_counts_that_was_finished_while_redis_was_away(scene: Scene) -> None:
    worker = scene.worker()
    job = scene.submit(["step", "checkpoint", "step", "torn", "wait gate", "commit", "wait back", "train"], steps=20)
    scene.trains(job, step=2)
    scene.server.kill()
    eventually(lambda: "goes on without it" in worker.log)
    scene.open("gate")
    scene.saves(job, step=2)
    scene.server.start()
    scene.open("back")
    assert scene.ends(job) == "finished"
    assert scene.steps(job) == [(1, step) for step in range(1, 21)]


def test_the_end_of_a_job_that_ended_while_redis_was_away_is_told_once_it_is_back(scene: Scene) -> None:
    scene.worker()
    job = scene.submit(["step", "wait gate", "step"], steps=2)
    scene.trains(job)
    scene.server.kill()
    scene.open("gate")
    eventually(lambda: scene.outcome(job) == "finished")
    scene.server.start()
    assert scene.ends(job) == "finished"
    assert scene.job(job).attempt == 1


def test_submit_without_redis_exits_with_5_and_leaves_nothing_behind(scene: Scene) -> None:
    scene.script(["step"])
    scene.server.kill()
    done = scene.gptjobs(*scene.submission())
    assert done.returncode == 5
    assert "does not answer" in done.stderr and "hint:" in done.stderr and "Traceback" not in done.stderr
    assert list(scene.layout.outputs.iterdir()) == []
    scene.server.start()
    assert scene.store.all() == []


def test_a_lost_doorbell_rings_again(scene: Scene) -> None:
    job = scene.submit(["step"], steps=1)
    scene.lose_doorbells()
    scene.worker()
    assert scene.ends(job, 30) == "finished"


def test_checkpoints_count_of_a_host_that_dies_while_redis_is_away(scene: Scene) -> None:
    first = scene.worker("first")
    job = scene.submit(TRAINS_ON)
    scene.trains(job)
    scene.worker("second")
    scene.server.kill()
    last = scene.saves(job, step=scene.steps(job)[-1][1] + 30)
    scene.lose(first, job)
    last = scene.saved(job)[-1]
    scene.server.start()
    scene.trains(job, token=2, limit_s=TAKEN_OVER_S + 10)
    assert scene.starts(job) == [0, last]
    scene.saves(job, step=last + 10)
    assert scene.weights_are_undisturbed(job)


@pytest.mark.parametrize("away_s", [0, pytest.param(60, marks=pytest.mark.long)])
def test_one_worker_cut_off_from_redis_works_in_vain_and_stops_when_it_is_back(scene: Scene, away_s: float) -> None:
    first = scene.worker("first", proxy=scene.proxy())
    job = scene.submit(TRAINS_ON)
    scene.trains(job)
    scene.worker("second")
    trainer = scene.trainer(job)
    if away_s:
        first.proxy.hold()
    else:
        first.proxy.refuse()
    token = scene.trains(job, token=2, limit_s=TAKEN_OVER_S)
    start = scene.starts(job)[-1]
    time.sleep(away_s)
    assert trainer in scene.trainers(job)
    eventually(lambda: [each for each in checkpoint.of_job(scene.layout, job) if is_late(each, start)])
    first.proxy.mend()
    eventually(lambda: trainer not in scene.trainers(job))
    eventually(lambda: "fenced" in first.log)
    assert not [each for each in checkpoint.counting(scene.layout, job) if is_late(each, start)]
    assert scene.job(job).token == token
    scene.saves(job, step=start + 10)
    assert scene.weights_are_undisturbed(job)
    another = scene.submit(["step"], name="another", steps=1)
    assert scene.ends(another) == "finished"
    assert scene.job(another).worker == scene.presence("first").name


def is_late(each: checkpoint.Checkpoint, start: int) -> bool:
    """Whether the first attempt wrote it after the second one's start."""
    return each.manifest.token == 1 and each.manifest.step > start


def test_a_flush_costs_no_running_job_and_no_job_that_comes_after(scene: Scene) -> None:
    worker = scene.worker(slots=2)
    job = scene.submit(["step", "wait gate", "train"], TRAINS_ON, steps=60)
    ended = scene.submit(["step"], name="ended", steps=1)
    assert scene.ends(ended) == "finished"
    scene.trains(job)
    scene.store._redis.flushall()
    eventually(lambda: "its record is back" in worker.log)
    assert scene.state(job) == "running"
    after = scene.submit(["step"], name="after", steps=1)
    assert scene.ends(after, 8) == "finished"  # by its doorbell: a waiting job is found after a TTL
    os.kill(scene.trainer(job), signal.SIGKILL)
    scene.trains(job, token=2, limit_s=8)
    assert scene.ends(job) == "finished"
    assert scene.weights_are_undisturbed(job)
    assert {each.spec.id for each in scene.store.all()} == {job, after}


@pytest.mark.long
def test_an_old_attempt_that_wakes_after_a_flush_stays_fenced(scene: Scene) -> None:
    first, trainer, job = frozen(scene)
    token = scene.job(job).token
    scene.store._redis.flushall()
    eventually(lambda: scene.workers[-1].log.count("its record is back") == 1)
    os.kill(trainer, signal.SIGCONT)
    eventually(lambda: scene.written(job, token=1))
    first.thaw()
    eventually(lambda: trainer not in scene.trainers(job))
    assert "fenced" in first.log
    assert scene.job(job).token == token > 1
    assert not [each for each in checkpoint.counting(scene.layout, job) if each.manifest.token == 1]


def test_an_old_attempt_that_wakes_in_a_flushed_redis_puts_nothing_back(scene: Scene) -> None:
    first, trainer, job = frozen(scene)
    scene.lose(scene.workers[-1], job, spare=trainer)
    scene.store._redis.flushall()
    os.kill(trainer, signal.SIGCONT)
    eventually(lambda: scene.written(job, token=1))
    first.thaw()
    eventually(lambda: trainer not in scene.trainers(job))
    assert "fenced" in first.log
    assert scene.store.all() == []


def frozen(scene: Scene) -> tuple[Worker, int, str]:
    """A worker and its trainer, frozen, and their job, which trains elsewhere."""
    first = scene.worker("first")
    job = scene.submit(["wait lid", "train"], TRAINS_ON)
    eventually(lambda: scene.trainers(job))
    trainer = scene.trainer(job)
    first.freeze()
    os.kill(trainer, signal.SIGSTOP)
    scene.open("lid")
    scene.worker("second")
    scene.trains(job, token=2, limit_s=TAKEN_OVER_S)
    return first, trainer, job


def test_a_full_redis_refuses_a_job_clearly_and_training_goes_on(scene: Scene) -> None:
    worker = scene.worker(slots=2)
    job = scene.submit(TRAINS_ON)
    scene.trains(job)
    scene.store._redis.config_set("maxmemory", 1)
    refused = scene.gptjobs(*scene.submission("refused"))
    assert refused.returncode == 5
    assert "maxmemory" in refused.stderr and "Traceback" not in refused.stderr
    at = scene.steps(job)[-1][1]
    eventually(lambda: "goes on without it" in worker.log)
    scene.saves(job, step=at + 20)
    scene.store._redis.config_set("maxmemory", 0)
    eventually(lambda: "answers again" in worker.log)
    another = scene.submit(["step"], name="another", steps=1)
    assert scene.ends(another) == "finished"
    assert scene.job(job).attempt == 1
    assert scene.weights_are_undisturbed(job)
