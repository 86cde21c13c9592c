"""Checkpoints that are torn, late or spoilt: the newest that counts is whole, and leftovers are swept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptjobs import checkpoint, durable
from gptjobs.config import Given, Plan, settle
from gptjobs.layout import Layout
from tests.conftest import eventually
from tests.faults.saves import JOB, TOKEN
from tests.faults.scene import REPOSITORY, TRAINS_ON, Scene

TINY = {
    "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16, "block_size": 8, "encoding": "bytes",
    "data": "sources/text.md", "steps": 10,
}  # fmt: skip


def test_a_trainer_killed_between_any_two_steps_of_a_checkpoints_writing_leaves_the_one_before_or_this_one(
    layout: Layout, tmp_path: Path
) -> None:
    settled = settle({name: Given(value, "test") for name, value in TINY.items()})
    plan = Plan(job=JOB, kind="train", settled=settled, data_name="text", data_digest="d" * 64, parent=None)
    layout.job_outputs(JOB).mkdir()
    layout.config_file(JOB).write_bytes(durable.to_json(plan.to_dict()))
    checkpoint.begin_attempt(layout, JOB, TOKEN, None, worker="test", device="cpu")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.saves", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    operations = [line.split()[1] for line in done.stdout.splitlines()]
    named = [number for number, operation in enumerate(operations) if operation == "os.link"]
    assert len(named) == 2 and "write" in operations
    for each in named:
        assert operations[each - 1] == "fsync"  # the file, before it has its name
        assert "fsync" in operations[each : each + 4]  # the folder, after

    counts = []
    for killed_before in range(1, len(operations) + 2):
        copy = Layout(tmp_path / str(killed_before))
        newest = checkpoint.counting(copy, JOB)[-1]
        checkpoint.verify(copy, newest)
        counts.append(newest.manifest.step)
        checkpoint.sweep_leftovers(copy, JOB)
        left = {path.name for path in copy.job_checkpoints(JOB).iterdir()}
        committed = [copy.path(each.name) for each in checkpoint.of_job(copy, JOB)]
        assert left == {file.name for path in committed for file in (path, path.with_suffix(".json"))}
    assert counts == sorted(counts) and set(counts) == {1, 2}
    # this one counts from the moment that its manifest has its name
    assert counts.index(2) == named[1] + 1


@pytest.mark.parametrize("damage", ["a flipped bit", pytest.param("a truncation", marks=pytest.mark.long)])
def test_a_spoilt_checkpoint_is_passed_over_for_the_one_before(scene: Scene, damage: str) -> None:
    scene.worker()
    job = scene.submit(["step", "checkpoint", "step", "checkpoint", "step", "wait gate", "crash"], TRAINS_ON)
    scene.trains(job, step=3)
    assert scene.saved(job) == [1, 2]
    path = scene.layout.path(checkpoint.counting(scene.layout, job)[-1].name)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage == "a flipped bit" else content[:-1])
    scene.open("gate")
    scene.trains(job, token=2, limit_s=60)  # a young file is waited for: its data may only be late
    assert scene.starts(job) == [0, 1]
    eventually(lambda: scene.saved(job)[1:])
    assert scene.weights_are_undisturbed(job)
