"""The storage root goes away, fills up, comes back, shows files late, spoils them: nothing is lost, and it is said."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptjobs import checkpoint, durable, record, storage
from gptjobs.checkpoint import Checkpoint, manifest_path
from gptjobs.layout import Layout
from gptjobs.leases import LeaseStore
from gptjobs.store import Store
from tests.conftest import Commands, Workers, english, eventually
from tests.integration.test_lease_in_trouble import JOB, SPEC
from tests.integration.test_lease_in_trouble import held as lease_of

TINY = (
    "--model", "nano", "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--batch-size", "4", "--block-size", "32",
    "--eval-tokens", "512", "--eval-interval", "1000000", "--data", "sources/text.md",
)  # fmt: skip


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A root that is reached by a link, so that it can be unmounted, as far as any process can tell."""
    disk = Layout(tmp_path / "disk")
    disk.make()
    (disk.root / "sources").mkdir()
    (disk.root / "sources" / "text.md").write_text(english(9000))
    (tmp_path / "bare").mkdir()
    (tmp_path / "root").symlink_to("disk")
    return Layout(tmp_path / "root")


def mount(layout: Layout, target: str) -> None:
    """Let the root lead elsewhere, at one blow."""
    new = layout.root.with_name("new")
    new.symlink_to(target)
    new.replace(layout.root)


def submit(gptjobs: Commands, *, steps: int, interval: int) -> str:
    return gptjobs.ok(
        "submit", "train", "-q", *TINY, "--steps", str(steps), "--checkpoint-interval", str(interval)
    )  # fmt: skip


def saved(layout: Layout, job: str) -> list[int]:
    return [each.manifest.step for each in checkpoint.counting(layout, job)]


def state(store: Store, job: str) -> str:
    return store.get(job).state.value


def events(layout: Layout, job: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in layout.events_file(job).read_text().splitlines()]


def test_storage_unmounted_and_back(gptjobs: Commands, workers: Workers, store: Store, layout: Layout) -> None:
    workers.start()
    job = submit(gptjobs, steps=2000, interval=250)
    eventually(lambda: saved(layout, job))
    mount(layout, "bare")
    eventually(lambda: state(store, job) == "queued")
    waits = store.get(job)
    assert (waits.cause, waits.fruitless.get("storage", 0)) == ("storage", 1)
    assert "the storage root does not work on worker@" in (waits.reason or "")
    eventually(lambda: "no job is taken" in workers.log())
    assert list(layout.root.iterdir()) == []
    mount(layout, "disk")
    before = saved(layout, job)[-1]
    eventually(lambda: state(store, job) == "finished")
    assert saved(layout, job)[-1] == 2000
    assert checkpoint.attempts(layout, job)[-1].start_step == before
    assert not list(layout.root.rglob(".*.tmp"))


def test_a_worker_on_a_bare_mount_point_takes_no_job_and_another_one_does(
    gptjobs: Commands, workers: Workers, store: Store, layout: Layout, tmp_path: Path
) -> None:
    own = Layout(tmp_path / "own")
    own.root.symlink_to("disk")
    gptjobs.environment["GPTJOBS_ROOT"] = str(own.root)
    workers.start("bare")
    mount(own, "bare")
    gptjobs.environment["GPTJOBS_ROOT"] = str(layout.root)
    job = submit(gptjobs, steps=20, interval=10)
    eventually(lambda: "no job is taken" in workers.log("bare"))
    workers.start("whole")
    eventually(lambda: state(store, job) == "finished")
    assert (store.get(job).worker or "").startswith("whole@")
    assert list(own.root.iterdir()) == []


@pytest.mark.parametrize("place", ["bare", "other"])
def test_a_worker_that_starts_on_another_folder_refuses(
    gptjobs: Commands, workers: Workers, layout: Layout, tmp_path: Path, place: str
) -> None:
    workers.start()
    if place == "other":
        Layout(tmp_path / "other").make()
    before = sorted((tmp_path / place).iterdir())
    refused = gptjobs("worker", "start", "--device", "cpu", GPTJOBS_ROOT=str(tmp_path / place))
    assert refused.returncode == 3
    assert "mounted" in refused.stderr and "hint: " in refused.stderr
    assert sorted((tmp_path / place).iterdir()) == before


def test_a_client_in_another_root_is_refused_before_anything_is_written(
    gptjobs: Commands, workers: Workers, tmp_path: Path
) -> None:
    workers.start()
    other = Layout(tmp_path / "other")
    other.make()
    refused = gptjobs("submit", "train", *TINY, GPTJOBS_ROOT=str(other.root))
    assert (refused.returncode, list(other.outputs.iterdir())) == (3, [])
    assert "not that of the jobs in Redis" in refused.stderr


def test_a_lease_outlives_a_flush_while_the_storage_is_away(redis_url: str, layout: Layout) -> None:
    leases = LeaseStore(redis_url)
    leases.submit(SPEC)
    record.write_spec(layout, SPEC)
    held = lease_of(leases, storage.identified(layout))
    leases._redis.flushall()
    mount(layout, "bare")
    held._renew()
    assert not held.lost
    mount(layout, "disk")
    held._renew()
    assert [each.spec.id for each in leases.leased()] == [JOB]


def test_after_a_flush_the_root_is_known_again(workers: Workers, store: Store, layout: Layout) -> None:
    workers.start()
    before = store.root()
    store._redis.flushall()
    assert eventually(store.root) == before == json.loads(layout.marker.read_text())["id"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the files of a process that runs")
def test_no_space_pauses_with_a_reason_and_it_goes_on_when_there_is_some(
    gptjobs: Commands, workers: Workers, store: Store, layout: Layout
) -> None:
    """The kernel lets no file grow beyond half a checkpoint, as a quota would."""
    worker = workers.start()
    job = submit(gptjobs, steps=2000, interval=100)
    eventually(lambda: saved(layout, job))
    trainer = eventually(lambda: trainers(job))[0]
    half = checkpoint.counting(layout, job)[0].manifest.size // 2
    for pid in (worker.pid, trainer):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (half, resource.RLIM_INFINITY))
    eventually(lambda: state(store, job) == "paused")
    paused, kept = store.get(job), saved(layout, job)
    assert paused.cause == "no space"
    assert f"free space in the storage root, then gptjobs unpause {job}" in (paused.reason or "")
    assert json.loads(layout.request_file(job, "pause").read_text())["pause"] == paused.reason
    assert not list(layout.root.rglob(".*.tmp"))
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    gptjobs.ok("unpause", job)
    eventually(lambda: state(store, job) == "finished")
    assert checkpoint.attempts(layout, job)[-1].start_step == kept[-1]


def trainers(job: str) -> list[int]:
    listed = subprocess.run(["ps", "-axww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "worker.trainer" in line and f"/{job}/" in line]


MEGABYTE = 1 << 20


@pytest.fixture
def small_disk(gptjobs: Commands, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """A disk of 24 MB as the root, mounted for a worker alone; what enters its view of the world."""
    disk, log = tmp_path / "small", tmp_path / "small.log"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size={24 * MEGABYTE} tmpfs {disk} && cp -r {gptjobs.layout.root}/sources {disk} && "
        f"exec {sys.executable} -m gptjobs worker start --device cpu"
    )
    gptjobs.environment["GPTJOBS_ROOT"] = str(disk)
    with log.open("wb") as output:
        worker = subprocess.Popen(["unshare", "-m", "sh", "-c", script], env=gptjobs.environment, stderr=output)
    store = Store(gptjobs.environment["GPTJOBS_REDIS_URL"])
    eventually(lambda: store.workers() or worker.poll() is not None)
    if worker.poll() is not None:
        pytest.skip(f"no disk can be mounted here: {log.read_text().strip()}")
    yield ("nsenter", "-t", str(worker.pid), "-m", "--")
    worker.kill()
    worker.wait()


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux mounts a disk for one process")
def test_no_space_on_a_real_disk(gptjobs: Commands, store: Store, small_disk: tuple[str, ...]) -> None:
    root = gptjobs.environment["GPTJOBS_ROOT"]

    def inside(*command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*small_disk, *command], env=gptjobs.environment, cwd="/", capture_output=True, text=True, timeout=60
        )

    python = (sys.executable, "-m", "gptjobs")
    too_many = inside(*python, "submit", "train", *TINY, "--steps", "100000", "--checkpoint-interval", "10")
    assert too_many.returncode == 3
    assert "no space" in too_many.stderr and "--checkpoint-interval" in too_many.stderr
    submitted = inside(*python, "submit", "train", "-q", *TINY, "--steps", "2000", "--checkpoint-interval", "200")
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.strip()
    eventually(lambda: "checkpoint" in store.get(job).progress)
    inside("sh", "-c", f"cat /dev/zero > {root}/filler")
    eventually(lambda: state(store, job) == "paused")
    assert "No space left on device" in (store.get(job).reason or "")
    listed = json.loads(inside(*python, "checkpoints", "list", job, "--json").stdout)["checkpoints"]
    assert listed[-1]["status"] == "good"
    assert not inside("sh", "-c", f"find {root} -name '.*.tmp'").stdout
    inside("rm", f"{root}/filler")
    inside(*python, "unpause", job)
    eventually(lambda: state(store, job) == "finished")


def paused_after_two(gptjobs: Commands, workers: Workers, store: Store, layout: Layout) -> tuple[str, list[Checkpoint]]:
    """A job that is paused, and its checkpoints."""
    workers.start()
    job = submit(gptjobs, steps=6000, interval=300)
    eventually(lambda: len(saved(layout, job)) >= 2)
    gptjobs.ok("pause", job)
    eventually(lambda: state(store, job) == "paused")
    return job, checkpoint.counting(layout, job)


@pytest.mark.parametrize("harm", ["bit flip", pytest.param("truncation", marks=pytest.mark.long)])
def test_a_corrupt_checkpoint_is_quarantined_and_the_one_before_is_used(
    gptjobs: Commands, workers: Workers, store: Store, layout: Layout, harm: str
) -> None:
    job, (*_, before, newest) = paused_after_two(gptjobs, workers, store, layout)
    spoil(layout.path(newest.name), harm)
    written_long_ago(layout, newest)
    gptjobs.ok("unpause", job)
    eventually(lambda: state(store, job) == "finished")
    assert checkpoint.attempts(layout, job)[-1].start == before.name
    (event,) = [each for each in events(layout, job) if each["kind"] == "quarantined"]
    assert (event["step"], "corrupt" in event["reason"]) == (newest.manifest.step, True)
    assert f"{newest.name} is quarantined, corrupt" in gptjobs.ok("logs", job)
    assert "quarantined" in gptjobs.ok("checkpoints", "list", job)
    assert "status quarantined: corrupt" in gptjobs.ok("checkpoints", "show", newest.name)
    refused = gptjobs("submit", "resume", "--from", newest.name, "--steps", "10")
    assert (refused.returncode, "is quarantined: corrupt" in refused.stderr) == (3, True)


def spoil(path: Path, harm: str) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if harm == "bit flip" else content[:-1000])


def written_long_ago(layout: Layout, found: Checkpoint) -> None:
    path = manifest_path(layout.path(found.name))
    durable.write(path, durable.to_json({**json.loads(path.read_text()), "written_at": 0.0}))


@pytest.mark.long
def test_a_manifest_visible_before_its_data_is_waited_for(
    gptjobs: Commands, workers: Workers, store: Store, layout: Layout
) -> None:
    job, (*_, newest) = paused_after_two(gptjobs, workers, store, layout)
    path = layout.path(newest.name)
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    gptjobs.ok("unpause", job)
    eventually(lambda: state(store, job) == "running")
    time.sleep(2)
    assert len(checkpoint.attempts(layout, job)) == 1
    with path.open("r+b") as late:
        late.write(content)
        os.fsync(late.fileno())
    eventually(lambda: len(checkpoint.attempts(layout, job)) == 2)
    assert checkpoint.attempts(layout, job)[-1].start == newest.name
    eventually(lambda: state(store, job) == "finished")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the files of a process that runs")
def test_no_space_for_the_tokens_pauses_the_job_too(
    gptjobs: Commands, workers: Workers, store: Store, layout: Layout
) -> None:
    worker = workers.start()
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    job = submit(gptjobs, steps=10, interval=10)
    eventually(lambda: state(store, job) == "paused")
    assert "could not be encoded: File too large; free space" in (store.get(job).reason or "")
    assert not list(layout.root.rglob(".*.tmp"))


def test_the_doctor_and_up_tell_a_root_that_is_not_that_of_the_jobs(
    gptjobs: Commands, workers: Workers, tmp_path: Path
) -> None:
    workers.start()
    other = Layout(tmp_path / "other")
    other.make()
    examined = gptjobs("doctor", GPTJOBS_ROOT=str(other.root))
    assert "not that of the jobs in Redis" in examined.stdout
    refused = gptjobs("up", "--no-worker", "--no-flower", GPTJOBS_ROOT=str(tmp_path / "bare"))
    assert (refused.returncode, list((tmp_path / "bare").iterdir())) == (3, [])
