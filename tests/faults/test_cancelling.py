"""Jobs that are cancelled at any moment: one terminal state, and never revived."""

import os
import signal

import pytest

from tests.conftest import eventually
from tests.faults.scene import TRAINS_ON, Scene


def stays_cancelled(scene: Scene, job: str) -> bool:
    """Whether the job is over for good: a worker that is rung for it trains another one, and not this one."""
    trained = scene.steps(job)
    for serial in range(scene.job(job).serial + 2):
        scene.ring(job, serial)
    probe = scene.submit(["step"], name="probe", steps=1)
    assert scene.ends(probe) == "finished"
    assert scene.state(job) == scene.outcome(job) == "cancelled"
    return scene.steps(job) == trained


def test_a_queued_job_is_cancelled_with_no_worker_alive(scene: Scene) -> None:
    job = scene.submit(TRAINS_ON)
    scene.gptjobs.ok("cancel", job)
    assert scene.state(job) == "cancelled"
    scene.worker()
    assert stays_cancelled(scene, job)
    assert scene.steps(job) == []


def test_a_running_job_that_is_cancelled_twice_ends_once_with_a_checkpoint(scene: Scene) -> None:
    scene.worker()
    job = scene.submit(TRAINS_ON, interval=100000)
    scene.trains(job, step=3)
    commands = [scene.start("cancel", job) for _ in range(2)]
    assert [each.wait(30) for each in commands] == [0, 0]
    assert scene.ends(job) == "cancelled"
    assert scene.saved(job) == [scene.steps(job)[-1][1]]
    assert stays_cancelled(scene, job)
    assert scene.gptjobs("cancel", job).returncode == 0
    assert scene.gptjobs("wait", job).returncode == 10


def test_a_cancel_that_races_with_the_end_leaves_one_terminal_state(scene: Scene) -> None:
    scene.worker(slots=4)
    jobs = [scene.submit(["step", f"wait gate{number}", "step"], name=f"job{number}", steps=2) for number in range(4)]
    for number, job in enumerate(jobs):
        scene.trains(job)
        command = scene.start("cancel", job)
        if number % 2:
            eventually(lambda job=job: (scene.layout.job_outputs(job) / "cancel.json").exists())
        scene.open(f"gate{number}")
        assert command.wait(30) == 0
    for job in jobs:
        assert scene.ends(job) in ("cancelled", "finished")
        assert scene.state(job) == scene.outcome(job)


@pytest.mark.parametrize(
    "when", [pytest.param("before the holder dies", marks=pytest.mark.long), "after the holder died"]
)
def test_a_job_cancelled_while_its_host_is_lost_is_cancelled_by_another(scene: Scene, when: str) -> None:
    first = scene.worker("first")
    job = scene.submit(["step", "checkpoint", "hang"], TRAINS_ON)
    scene.trains(job)
    scene.worker("second")
    if when == "before the holder dies":
        os.kill(scene.trainer(job), signal.SIGSTOP)  # so it cannot heed the request
        scene.gptjobs.ok("cancel", job)
        scene.lose(first, job)
    else:
        scene.lose(first, job)
        scene.gptjobs.ok("cancel", job)
    assert scene.ends(job) == "cancelled"
    assert stays_cancelled(scene, job)
    assert scene.job(job).attempt == 1
