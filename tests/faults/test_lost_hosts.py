"""Trainers, workers and hosts that die, freeze, hang or are told to stop."""

import os
import random
import signal
import time

import pytest

from gptjobs import checkpoint
from tests.conftest import Commands, Workers, eventually
from tests.e2e.test_loss_of_hosts import LONG as REAL
from tests.e2e.test_loss_of_hosts import newest_step, trainers
from tests.faults.scene import TAKEN_OVER_S, TRAINS_ON, TTL_S, Scene, seconds_until


def test_a_scripted_job_loses_exactly_the_steps_since_its_last_checkpoint(scene: Scene) -> None:
    scene.worker()
    job = scene.submit(["step", "step", "checkpoint", "step", "crash"], ["step"] * 3, steps=5)
    assert scene.ends(job) == "finished"
    assert scene.steps(job) == [(1, 1), (1, 2), (1, 3), (2, 3), (2, 4), (2, 5)]
    assert scene.weights_are_undisturbed(job)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_trainer_killed_20_times_ends_with_the_weights_of_an_undisturbed_job(
    gptjobs: Commands, workers: Workers
) -> None:
    workers.start(slots=2)
    short = [*REAL[:-4], "--checkpoint-interval", "10", "--steps", "3000", "--data", "sources/text.md"]
    undisturbed = gptjobs.ok("submit", "train", "-q", *short)
    job = gptjobs.ok("submit", "train", "-q", *short)
    chance = random.Random(1)
    for _ in range(20):
        beyond = newest_step(gptjobs, job) + 10
        eventually(lambda beyond=beyond: newest_step(gptjobs, job) >= beyond)
        time.sleep(chance.uniform(0, 0.2))
        for trainer in trainers(job):
            os.kill(trainer, signal.SIGKILL)
    gptjobs.ok("wait", job, undisturbed, "--timeout", "300")
    assert len(checkpoint.attempts(gptjobs.layout, job)) == 21
    ends = [checkpoint.counting(gptjobs.layout, each)[-1] for each in (job, undisturbed)]
    assert [each.manifest.step for each in ends] == [3000, 3000]
    assert ends[0].manifest.sha256 == ends[1].manifest.sha256


@pytest.mark.parametrize(
    "victims",
    [
        pytest.param("worker", marks=pytest.mark.long),
        pytest.param("worker and trainer", marks=pytest.mark.long),
        "in mid-save",
    ],
)
def test_a_killed_workers_job_trains_elsewhere_within_20_s(scene: Scene, victims: str) -> None:
    first = scene.worker("first")
    middle = ["torn", "wait never"] if victims == "in mid-save" else TRAINS_ON
    job = scene.submit(["step", "checkpoint", "step", *middle], TRAINS_ON)
    scene.trains(job, step=2)
    if victims == "in mid-save":
        eventually(lambda: len(list(scene.layout.job_checkpoints(job).glob("*.pt"))) == 2)
    scene.worker("second")
    orphan = scene.trainer(job)
    first.kill()
    if victims == "worker and trainer":
        os.kill(orphan, signal.SIGKILL)
    assert seconds_until(lambda: orphan not in scene.trainers(job), 10) < 10
    assert seconds_until(lambda: [each for each in scene.steps(job) if each[0] > 1], TAKEN_OVER_S) < TAKEN_OVER_S
    scene.saves(job, step=10)
    assert scene.weights_are_undisturbed(job) and scene.job(job).attempt == 2
    if victims == "in mid-save":
        assert scene.starts(job) == [0, 1]
        assert not scene.torn(job)


@pytest.mark.long
def test_what_a_closed_lid_wakes_up_to_write_does_not_count(scene: Scene) -> None:
    first = scene.worker("first")
    job = scene.submit(["step", "checkpoint", "step", "wait lid", "train"], TRAINS_ON)
    scene.trains(job, step=2)
    trainer = scene.trainer(job)
    first.freeze()
    os.kill(trainer, signal.SIGSTOP)
    scene.open("lid")
    scene.worker("second")
    time.sleep(3 * TTL_S)
    token = scene.trains(job, token=2)

    os.kill(trainer, signal.SIGCONT)
    before = scene.written(job, token=1)
    eventually(lambda: scene.written(job, token=1) > before)
    time.sleep(5)
    first.thaw()
    eventually(lambda: trainer not in scene.trainers(job))
    assert {each.manifest.token for each in checkpoint.counting(scene.layout, job)[1:]} == {token}
    assert "fenced" in first.log
    assert scene.job(job).attempt == 2 and scene.job(job).worker == scene.presence("second").name
    assert scene.weights_are_undisturbed(job)


@pytest.mark.parametrize("how", ["stopped", "hangs"])
def test_a_trainer_that_falls_silent_is_killed_as_hung_and_goes_on_from_its_checkpoint(scene: Scene, how: str) -> None:
    worker = scene.worker(changes={"worker.supervisor.HANG_LIMIT_S": 2.0})
    job = scene.submit(["step", "checkpoint", "step", "hang"], TRAINS_ON)
    scene.trains(job, step=2)
    if how == "stopped":
        os.kill(scene.trainer(job), signal.SIGSTOP)
    scene.trains(job, token=2)
    assert "hung" in worker.log
    assert scene.starts(job) == [0, 1]
    scene.saves(job, step=10)
    assert scene.weights_are_undisturbed(job)


def test_a_worker_told_to_stop_checkpoints_requeues_and_exits_with_0(scene: Scene) -> None:
    first = scene.worker("first")
    job = scene.submit(TRAINS_ON, interval=100000)
    scene.trains(job, step=3)
    second = scene.worker("second")
    first.stop()
    assert first.process.wait(20) == 0
    scene.trains(job, token=2)
    assert scene.job(job).worker == scene.presence("second").name
    assert scene.starts(job)[1] == max(step for token, step in scene.steps(job) if token == 1)
    assert scene.weights_are_undisturbed(job)
    assert second.process.poll() is None


@pytest.mark.long
def test_a_worker_told_to_stop_while_redis_is_away_exits_with_0_and_its_checkpoint_counts(scene: Scene) -> None:
    first = scene.worker("first")
    job = scene.submit(TRAINS_ON, interval=100000)
    scene.trains(job, step=3)
    scene.server.kill()
    first.stop()
    assert first.process.wait(30) == 0
    (last,) = scene.saved(job)
    scene.server.start()
    scene.worker("second")
    scene.trains(job, token=2)
    assert scene.starts(job) == [0, last] and last == scene.steps(job)[last - 1][1]


@pytest.mark.long
def test_a_job_ten_times_longer_than_the_visibility_timeout_has_one_attempt(scene: Scene) -> None:
    eager = {f"kombu.transport.redis.Channel.unacked_restore_{name}": 1 for name in ("interval", "throttle")}
    for name in ("first", "second"):
        scene.worker(name, changes={"gptjobs.broker._YEARS_S": 5, **eager})
    job = scene.submit(TRAINS_ON, steps=1000)
    assert scene.ends(job, 120) == "finished"
    assert scene.steps(job) == [(1, step) for step in range(1, 1001)]


def test_a_reaper_that_was_paused_for_longer_than_a_ttl_takes_nobodys_live_lease(scene: Scene) -> None:
    holder = scene.worker("holder")
    job = scene.submit(TRAINS_ON)
    scene.trains(job)
    reaper = scene.worker("reaper")
    time.sleep(2)  # it looks every second
    holder.freeze()
    time.sleep(1.5)
    reaper.freeze()
    time.sleep(TTL_S)
    reaper.thaw()
    time.sleep(2)
    holder.thaw()
    beat = scene.job(job).beat
    eventually(lambda: scene.job(job).beat >= beat + 2)
    assert scene.job(job).attempt == scene.job(job).token == 1


@pytest.mark.parametrize("jump_s", [600, pytest.param(-600, marks=pytest.mark.long)])
def test_clocks_that_jump_ten_minutes_lose_no_lease_and_keep_none(scene: Scene, jump_s: int) -> None:
    holder = scene.worker("holder")
    job = scene.submit(TRAINS_ON)
    scene.trains(job)
    scene.worker("reaper")
    scene.jump("holder", jump_s)
    scene.jump("reaper", -jump_s)
    if jump_s > 0:
        scene.expire_all_keys()
    beat = scene.job(job).beat
    eventually(lambda: scene.job(job).beat >= beat + 3)
    assert scene.job(job).attempt == 1
    holder.kill()
    killed_at = time.monotonic()
    time.sleep(3)  # the reaper watches a beat that stands still
    scene.jump("reaper", -2 * jump_s)
    scene.trains(job, token=2)
    assert time.monotonic() - killed_at < TAKEN_OVER_S
