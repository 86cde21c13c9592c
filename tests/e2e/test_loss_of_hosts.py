"""Workers and servers that die, freeze and stop in mid-job: nothing is lost, nothing counts twice."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gptjobs import checkpoint
from gptjobs.layout import Layout
from gptjobs.store import Store
from tests.conftest import Commands, Workers, eventually, start_server

LONG = (
    "--model", "nano", "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--batch-size", "4", "--block-size", "32",
    "--eval-tokens", "512", "--eval-interval", "1000000", "--checkpoint-interval", "50", "--steps", "100000",
)  # fmt: skip


def submit(gptjobs: Commands) -> str:
    return gptjobs.ok("submit", "train", "-q", *LONG, "--data", "sources/text.md")


def shown(gptjobs: Commands, job: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gptjobs.ok("show", job, "--json"))
    return found


def newest_step(gptjobs: Commands, job: str) -> int:
    counting = checkpoint.counting(gptjobs.layout, job)
    return counting[-1].manifest.step if counting else 0


def trainers(job: str) -> list[int]:
    """The processes that train the job, found by their command line."""
    listed = subprocess.run(["ps", "-axww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "worker.trainer" in line and f"/{job}/" in line]


def test_a_killed_workers_job_goes_on_elsewhere_from_its_last_checkpoint(
    gptjobs: Commands, workers: Workers, store: Store
) -> None:
    first = workers.start("first")
    job = submit(gptjobs)
    eventually(lambda: newest_step(gptjobs, job) >= 50)
    workers.start("second")
    first.kill()
    (before,) = checkpoint.attempts(gptjobs.layout, job)

    def trains_on() -> bool:
        latest = checkpoint.attempts(gptjobs.layout, job)[-1]
        return latest.token > before.token and store.get(job).progress.get("step", 0) > latest.start_step

    eventually(trains_on)
    assert store.get(job).attempt == 2
    assert (store.get(job).worker or "").startswith("second@")
    attempts = checkpoint.attempts(gptjobs.layout, job)
    assert [each.token for each in attempts] == sorted({each.token for each in attempts})
    assert attempts[-1].start is not None and attempts[-1].start_step >= 50
    assert len(trainers(job)) == 1
    gptjobs.ok("cancel", job)
    gptjobs("wait", job, "--timeout", "60")
    metrics = (gptjobs.layout.outputs / job / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in metrics]
    assert steps == sorted(set(steps)) and steps[0] == 0


def froze_between_saves(trainer: int, folder: Path) -> bool:
    """Stop the trainer, unless it writes a checkpoint just now: the next attempt would sweep that one away."""
    os.kill(trainer, signal.SIGSTOP)
    if not list(folder.glob(".*.tmp")) and len(list(folder.glob("*.pt"))) == len(list(folder.glob("*.json"))):
        return True
    os.kill(trainer, signal.SIGCONT)
    return False


def test_a_worker_frozen_and_thawed_writes_nothing_that_counts(
    gptjobs: Commands, workers: Workers, store: Store
) -> None:
    first = workers.start("first")
    job = submit(gptjobs)
    eventually(lambda: newest_step(gptjobs, job) >= 50)
    (trainer,) = trainers(job)
    workers.start("second")
    eventually(lambda: froze_between_saves(trainer, gptjobs.layout.job_checkpoints(job)))
    os.kill(first.pid, signal.SIGSTOP)
    eventually(lambda: store.get(job).attempt == 2 and len(checkpoint.attempts(gptjobs.layout, job)) == 2, 40)
    second = checkpoint.attempts(gptjobs.layout, job)[-1]

    os.kill(trainer, signal.SIGCONT)  # the frozen trainer goes on before its worker learns that it was fenced

    def late_checkpoints() -> list[int]:
        return [
            each.manifest.step
            for each in checkpoint.of_job(gptjobs.layout, job)
            if each.manifest.token < second.token and each.manifest.step > second.start_step
        ]

    eventually(late_checkpoints)
    os.kill(first.pid, signal.SIGCONT)
    eventually(lambda: trainer not in trainers(job))
    counting = checkpoint.counting(gptjobs.layout, job)
    assert all(each.manifest.token == second.token or each.manifest.step <= second.start_step for each in counting)
    assert (store.get(job).worker or "").startswith("second@")
    assert "fenced" in workers.log("first")
    assert first.poll() is None


def test_a_worker_told_to_stop_puts_its_job_back_with_a_checkpoint(
    gptjobs: Commands, workers: Workers, store: Store
) -> None:
    first = workers.start("first")
    job = submit(gptjobs)
    eventually(lambda: store.get(job).progress.get("step", 0) >= 10)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    assert store.get(job).state == "queued"
    stopped_at = newest_step(gptjobs, job)
    assert stopped_at > 0 and not trainers(job)

    workers.start("second")
    eventually(lambda: store.get(job).progress.get("step", 0) > stopped_at)
    assert checkpoint.attempts(gptjobs.layout, job)[-1].start_step == stopped_at


def test_a_stop_of_the_whole_service_is_one_request(gptjobs: Commands, workers: Workers, store: Store) -> None:
    worker = workers.start()
    job = submit(gptjobs)
    eventually(lambda: store.get(job).progress.get("step", 0) >= 10)
    (trainer,) = trainers(job)
    os.kill(trainer, signal.SIGTERM)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert store.get(job).state == "queued" and store.get(job).fruitless == {}
    assert newest_step(gptjobs, job) > 0


def test_a_killed_trainer_is_started_again_and_its_worker_lives(
    gptjobs: Commands, workers: Workers, store: Store
) -> None:
    worker = workers.start()
    job = submit(gptjobs)
    eventually(lambda: newest_step(gptjobs, job) >= 50)
    (trainer,) = trainers(job)
    os.kill(trainer, signal.SIGKILL)
    eventually(lambda: store.get(job).attempt == 2 and newest_step(gptjobs, job) >= 100)
    assert worker.poll() is None
    events = (gptjobs.layout.outputs / job / "events.jsonl").read_text()
    assert "killed from outside: SIGKILL" in events


def test_a_trainer_dies_with_its_worker(gptjobs: Commands, workers: Workers) -> None:
    worker = workers.start()
    job = submit(gptjobs)
    eventually(lambda: newest_step(gptjobs, job) >= 50)
    assert len(trainers(job)) == 1
    worker.kill()
    eventually(lambda: not trainers(job), 10)


def test_a_doorbell_that_was_lost_rings_again(gptjobs: Commands, workers: Workers, store: Store) -> None:
    job = submit(gptjobs)
    for queue in ("any", "cpu"):
        store._redis.delete(queue, *store._redis.keys(f"{queue}*"))
    workers.start()
    eventually(lambda: store.get(job).state == "running", 40)


def test_a_job_whose_trainer_keeps_crashing_fails_with_the_cause(
    gptjobs: Commands, workers: Workers, store: Store
) -> None:
    gptjobs.ok("data", "prepare", "sources/text.md", "--encoding", "bytes")
    (tokens,) = gptjobs.layout.shared_data.glob("tokens/*/bytes.bin")
    job = submit(gptjobs)
    tokens.unlink()
    workers.start()
    ended = gptjobs("wait", job, "--timeout", "120")
    assert ended.returncode == 1
    assert "FileNotFoundError" in ended.stderr
    assert store.get(job).attempt == 5
    assert "Traceback" in gptjobs.ok("logs", job)


def test_training_goes_on_while_redis_is_away_and_after_it_lost_everything(
    layout: Layout, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    server, url = start_server(tmp_path_factory.mktemp("own"))
    gptjobs = Commands(layout, url)
    workers = Workers(gptjobs, tmp_path)
    store = Store(url)
    try:
        workers.start()
        job = submit(gptjobs)
        eventually(lambda: newest_step(gptjobs, job) >= 50)
        server.send_signal(signal.SIGSTOP)
        away_since = newest_step(gptjobs, job)
        eventually(lambda: "goes on without it" in workers.log())
        eventually(lambda: newest_step(gptjobs, job) >= away_since + 100)
        server.send_signal(signal.SIGCONT)
        eventually(lambda: "Redis answers again" in workers.log())

        store._redis.flushall()
        eventually(lambda: "its record is back" in workers.log())
        back = store.get(job)
        assert back.state == "running" and back.spec.id == job
        gptjobs.ok("cancel", job)
        assert gptjobs("wait", job, "--timeout", "60").returncode == 10
        assert len(checkpoint.attempts(layout, job)) == 1
    finally:
        workers.stop()
        server.send_signal(signal.SIGCONT)
        server.kill()
        server.wait()
