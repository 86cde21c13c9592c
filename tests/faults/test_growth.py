"""A trainer whose memory grows without end: it is restarted from a checkpoint, or only told of."""

import json

from gptjobs import record
from gptjobs.job import Cause
from tests.conftest import eventually
from tests.faults.scene import TRAINS_ON, Scene

LEAKS = ["leak"]
QUICK = {
    "worker.onlooker.MEMORY_LOOK_S": 0.05, "worker.growth.SETTLE_S": 0.3, "worker.growth.WINDOW_S": 0.3,
    "worker.growth.GROWN_BYTES": 1 << 23,
}  # fmt: skip
"""what is minutes and gigabytes otherwise"""


def test_a_trainer_whose_memory_grows_without_end_is_restarted_from_a_checkpoint(scene: Scene) -> None:
    scene.worker(changes=QUICK)
    scene.script(LEAKS, TRAINS_ON)
    job = scene.gptjobs.ok(*scene.submission(steps=200, interval=1000), "--restart-on-growth", "on")
    scene.gptjobs.ok("wait", job, "--timeout", "60")
    first, _ = record.read_attempts(scene.layout, job)
    assert first.ended is not None and first.ended.cause is Cause.GROWTH
    assert "its memory grew without end, from 0.0 GiB to" in first.ended.reason
    (alert,) = first.alerts
    assert alert["name"] == "memory_growth" and alert["host"]["trainer_memory"] > QUICK["worker.growth.GROWN_BYTES"]
    began, went_on = scene.starts(job)
    assert began == 0 and went_on > 0 and went_on in scene.saved(job)
    assert scene.weights_are_undisturbed(job) and scene.saved(job)[-1] == 200
    assert scene.store.get(job).fruitless == {}
    assert f"step {alert['step']}, memory_growth: its memory grew" in scene.layout.summary_file(job).read_text()


def test_memory_that_grows_is_only_told_of_where_no_restart_was_asked_for(scene: Scene) -> None:
    scene.worker(changes=QUICK)
    job = scene.submit(LEAKS)
    told = eventually(lambda: json.loads(scene.gptjobs.ok("show", job, "--json"))["alerts"], 30)
    scene.trains(job, step=scene.steps(job)[-1][1] + 20)
    assert [each["name"] for each in told] == ["memory_growth"]
    assert scene.starts(job) == [0]
    assert "its memory grew without end" in scene.gptjobs.ok("explain", job)
