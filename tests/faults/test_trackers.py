"""Trackers that follow jobs: what they show after a job went back, and that their own trouble is nobody else's."""

import json
import socket
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from gptjobs.local import _free_port
from tests.conftest import eventually
from tests.faults.scene import Scene
from tests.faults.wandb_server import WandbServer

GOES_BACK = (["step", "step", "checkpoint", "step", "step", "wait seen", "crash"], ["step"] * 3)
"""The second attempt makes the steps 3 and 4 again. A loss is the token of the attempt that reported it."""
SEEN = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0)]
COUNTS = [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]
Points = list[tuple[int, float]]


def event_file(scene: Scene, job: str) -> EventAccumulator:
    """The job's curves as TensorBoard's own reader has them from the files."""
    folder = scene.layout.tensorboard(job, "job")
    eventually(folder.is_dir)
    return EventAccumulator(str(folder), size_guidance={SCALARS: 0, TENSORS: 0}).Reload()


def losses_in_files(scene: Scene, job: str) -> Points:
    found = event_file(scene, job)
    return [(each.step, each.value) for each in found.Scalars("train/loss")] if found.Tags()["scalars"] else []


def losses_in_wandb(store: Path) -> Points:
    """What Weights & Biases' store of a run holds, which `wandb sync` would send."""
    rows = [{item.nested_key[0]: json.loads(item.value_json) for item in each.history.item} for each in records(store)]
    return [(row["_step"], row["train/loss"]) for row in rows if row]


def records(store: Path) -> list[Record]:
    """A store is a log as LevelDB writes it: blocks of 32 KiB, a record in one or more parts, after a header of 7."""
    data, at, whole, found = store.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, part = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # whole, or its last part
            found.append(Record.FromString(whole))
            whole = b""
    return found


def test_the_files_of_tensorboard_have_each_step_once_from_the_branch_that_counts(scene: Scene) -> None:
    scene.worker(track="tensorboard")
    job = scene.submit(*GOES_BACK, steps=5)
    eventually(lambda: losses_in_files(scene, job) == SEEN)
    scene.open("seen")
    assert scene.ends(job) == "finished"
    eventually(lambda: losses_in_files(scene, job) == COUNTS)
    eventually(lambda: "outcome" in event_file(scene, job).Tags()["tensors"])
    (outcome,) = event_file(scene, job).Tensors("outcome")
    assert (outcome.step, list(outcome.tensor_proto.string_val)) == (5, [b"finished"])


class TensorBoard:
    """The real server, on loopback, with one of its two ways to read files."""

    def __init__(self, logdir: Path, load_fast: str) -> None:
        self._port = _free_port()
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(self._port)]
        self.process = subprocess.Popen(
            [*command, "--load_fast", load_fast, "--reload_interval", "1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://localhost:{self._port}/data/{path}", timeout=10) as answer:
                return json.load(answer)
        except OSError:
            return None

    def losses(self, run: str) -> Points:
        found = self.get(f"plugin/scalars/scalars?tag={quote('train/loss', safe='')}&run={quote(run, safe='')}")
        return [(step, value) for _, step, value in found or []]


@pytest.fixture(params=["true", "false"], ids=["fast", "not fast"])
def tensorboard(scene: Scene, request: pytest.FixtureRequest) -> Iterator[TensorBoard]:
    made = TensorBoard(scene.layout.outputs, request.param)
    yield made
    made.process.terminate()
    made.process.wait()


def test_a_tensorboard_that_is_open_drops_the_steps_that_a_job_goes_back_over(
    scene: Scene, tensorboard: TensorBoard
) -> None:
    scene.worker(track="tensorboard")
    job = scene.submit(*GOES_BACK, steps=5)
    eventually(lambda: tensorboard.losses(f"{job}/tensorboard/job") == SEEN)
    scene.open("seen")
    assert scene.ends(job) == "finished"
    eventually(lambda: tensorboard.losses(f"{job}/tensorboard/job") == COUNTS)


@pytest.fixture
def online(scene: Scene) -> Iterator[WandbServer]:
    with WandbServer() as server:
        scene.gptjobs.environment |= {
            "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "HOME": str(scene.layout.root / "home"),
            "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
        }  # fmt: skip
        yield server
        server.shutdown()


def test_a_job_that_was_paused_goes_on_in_its_run_of_wandb(scene: Scene, online: WandbServer) -> None:
    scene.worker(track="wandb")
    job = scene.submit(["step", "step", "wait never"], ["step"] * 2, steps=4)
    scene.trains(job, step=2)
    scene.gptjobs.ok("pause", job)
    eventually(lambda: scene.state(job) == "paused" and not tracking(scene))
    assert online.losses(job) == [(1, 1.0), (2, 1.0)]
    scene.gptjobs.ok("unpause", job)
    assert scene.ends(job) == "finished"
    eventually(lambda: not tracking(scene))
    assert online.losses(job) == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert json.loads(online.summaries[job])["outcome"] == "finished"
    assert set(online.begun) == {job}
    assert online.begun[job]["displayName"] == online.begun[job]["groupName"] == "job"
    assert not list((scene.layout.root / "home").rglob("*wandb*"))


def test_a_job_that_goes_back_has_a_run_on_the_server_with_all_that_counts(scene: Scene, online: WandbServer) -> None:
    scene.worker(track="wandb")
    job = scene.submit(*GOES_BACK, steps=5)
    eventually(lambda: online.losses(job) == SEEN)
    scene.open("seen")
    assert scene.ends(job) == "finished"
    eventually(lambda: online.losses(f"{job}-2") == COUNTS)
    assert online.losses(job) == SEEN
    assert online.begun[f"{job}-2"]["displayName"] == "job (attempt 2)"


def test_offline_each_attempt_leaves_a_store_of_wandb_with_the_whole_course(scene: Scene) -> None:
    scene.gptjobs.environment |= {"WANDB_MODE": "offline"}
    scene.worker(track="wandb")
    job = scene.submit(["step", "step", "checkpoint", "step", "crash"], ["step"] * 3, steps=5)
    assert scene.ends(job) == "finished"
    eventually(lambda: not tracking(scene))
    (store,) = scene.layout.wandb_parent(job).glob(f"wandb/offline-run-*/run-{job}-2.wandb")
    assert losses_in_wandb(store) == COUNTS
    begun = next(each.run for each in records(store) if each.HasField("run"))
    assert (begun.run_id, begun.display_name, begun.run_group) == (f"{job}-2", "job (attempt 2)", "job")


def tracking(scene: Scene) -> bool:
    """Whether a tracker's process of this scene lives."""
    listed = subprocess.run(["ps", "-axww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    return any("worker.track" in line and str(scene.layout.root) in line for line in listed.splitlines())


def test_the_tracker_of_a_lost_host_ends_and_that_of_the_next_one_has_the_whole_course(scene: Scene) -> None:
    first = scene.worker("first", track="tensorboard")
    job = scene.submit(["step", "step", "checkpoint", "step", "wait never"], ["step"] * 3, steps=5)
    eventually(lambda: losses_in_files(scene, job) == SEEN[:3])
    scene.lose(first, job)
    eventually(lambda: not tracking(scene))
    scene.worker("second", track="tensorboard")
    assert scene.ends(job) == "finished"
    eventually(lambda: [step for step, _ in losses_in_files(scene, job)] == [1, 2, 3, 4, 5])
    assert [loss for _, loss in losses_in_files(scene, job)][2:] == [float(scene.job(job).token)] * 3


def test_a_tracker_that_fails_is_a_line_in_the_jobs_log(scene: Scene) -> None:
    scene.gptjobs.environment |= {"HOME": str(scene.layout.root / "home")}  # with no key in it
    scene.gptjobs.environment.pop("WANDB_API_KEY", None)
    scene.worker(track="wandb")
    job = scene.submit(["step", "wait failed", "step"], steps=2)
    words = "--track wandb does not follow this attempt any more: UsageError: No API key configured"
    eventually(lambda: [words in line for line in scene.gptjobs.ok("logs", job).splitlines()].count(True) == 1)
    scene.open("failed")
    assert scene.ends(job) == "finished"


@pytest.fixture
def silent(scene: Scene) -> Iterator[socket.socket]:
    """A server of Weights & Biases that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        scene.gptjobs.environment |= {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
        yield server


def test_a_tracker_that_hangs_holds_up_neither_its_job_nor_the_next(scene: Scene, silent: socket.socket) -> None:
    scene.worker(track="wandb")
    job = scene.submit(["step", "wait hangs", "step"], steps=2)
    with silent.accept()[0]:
        scene.open("hangs")
        assert scene.ends(job) == "finished"
        assert scene.ends(scene.submit(["step"], name="next", steps=1)) == "finished"
        assert tracking(scene)


@pytest.mark.long
def test_a_worker_that_stops_waits_for_a_tracker_that_hangs_half_a_minute_at_most(
    scene: Scene, silent: socket.socket
) -> None:
    worker = scene.worker(track="wandb")
    job = scene.submit(["step", "wait never"])
    with silent.accept()[0]:
        worker.stop()
        eventually(lambda: worker.process.poll() is not None, 90)
    assert worker.process.returncode == 0
    assert scene.state(job) == "queued"
    assert not tracking(scene)
    assert "--track wandb does not follow this attempt any more: not done 30 s after the attempt's end" in worker.log
