"""Those who only look on: their loss is not noticed, and they do not notice the loss of others."""

import re
import subprocess
import sys

from gptjobs.local import _free_port
from tests.conftest import eventually
from tests.faults.scene import REPOSITORY, TAKEN_OVER_S, TRAINS_ON, Scene


def test_training_does_not_notice_the_loss_of_flower(scene: Scene) -> None:
    worker = scene.worker()
    log = scene.layout.root / "flower.log"
    with log.open("ab") as output:
        flower = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "gptjobs.flower", "-q", "flower"],
            env={
                **scene.gptjobs.environment, "PYTHONPATH": str(REPOSITORY), "FLOWER_ADDRESS": "127.0.0.1",
                "FLOWER_PORT": str(_free_port()), "FLOWER_BASIC_AUTH": "a:b",
            },
            cwd=scene.layout.root, stdout=output, stderr=output,
        )  # fmt: skip
    scene.started.append(flower)
    eventually(lambda: "Connected to redis" in log.read_text())
    job = scene.submit(TRAINS_ON)
    scene.trains(job)
    flower.kill()
    at = scene.steps(job)[-1][1]
    scene.trains(job, step=at + 100)
    assert scene.job(job).attempt == 1
    assert "Traceback" not in worker.log


def test_a_followed_log_is_one_stream_across_a_move_and_a_restart_of_redis(scene: Scene) -> None:
    first = scene.worker("first")
    job = scene.submit(["step", "checkpoint", "step", "wait never"], ["step", "wait gate", "train"], steps=30)
    scene.trains(job, step=2)
    log = scene.layout.root / "followed"
    with log.open("wb") as output:
        follower = scene.start("logs", "-f", job, stdout=output)
        eventually(lambda: "Step 2" in log.read_text())
        scene.worker("second")
        scene.lose(first, job)
        scene.trains(job, token=2, limit_s=TAKEN_OVER_S)
        scene.server.is_away(3)
        scene.open("gate")
        assert follower.wait(60) == 0
    said = re.findall(r"^Step (\d+): by (\d+)$", log.read_text(), re.MULTILINE)
    assert [(int(token), int(step)) for step, token in said] == scene.steps(job)
    assert scene.state(job) == "finished"
