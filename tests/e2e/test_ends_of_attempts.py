"""Attempts that end before their job does, with real workers: too little memory, kills from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptjobs import broker, checkpoint
from gptjobs.job import Cause, Job
from gptjobs.store import Store
from tests.conftest import Commands, Workers, eventually
from tests.e2e.test_loss_of_hosts import newest_step, shown, trainers

SHORT = (
    "--model", "nano", "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--batch-size", "7", "--block-size", "32",
    "--eval-tokens", "512", "--eval-interval", "50", "--checkpoint-interval", "50", "--steps", "150",
)  # fmt: skip


def submit(gptjobs: Commands, *more: str) -> str:
    return gptjobs.ok("submit", "train", "-q", *SHORT, *more, "--data", "sources/text.md")


@pytest.fixture
def scarce(gptjobs: Commands, store: Store, tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Starts a worker on whose device only so many windows fit at once."""
    started: list[subprocess.Popen[bytes]] = []

    def start(fit: int) -> None:
        command = [
            sys.executable,
            str(Path(__file__).with_name("scarce.py")),
            str(fit),
            "-m",
            "worker",
            "--device",
            "cpu",
        ]
        with (tmp_path / "scarce.log").open("wb") as log:
            started.append(subprocess.Popen(command, env=gptjobs.environment, stdout=log, stderr=log))
        eventually(store.workers)

    yield start
    for process in started:
        process.kill()
        process.wait()


def lines(gptjobs: Commands, job: str, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (gptjobs.layout.outputs / job / file).read_text().splitlines()]


def losses(gptjobs: Commands, job: str) -> dict[str, float]:
    names = ("train_loss", "val_loss", "grad_norm")
    found = {f"{name} at {each['step']}": each[name] for each in lines(gptjobs, job, "metrics.jsonl") for name in names}
    return {name: value for name, value in found.items() if value is not None}


def test_a_job_that_meets_too_little_memory_ends_as_one_that_never_did(
    gptjobs: Commands, workers: Workers, store: Store, scarce: Callable[[int], None]
) -> None:
    plenty = workers.start()
    never = submit(gptjobs)
    gptjobs.ok("wait", never)
    plenty.terminate()
    eventually(lambda: not store.workers())

    scarce(3)
    job = submit(gptjobs)
    eventually(lambda: newest_step(gptjobs, job) >= 50)
    (trainer,) = trainers(job)
    os.kill(trainer, signal.SIGKILL)  # what was found out outlives the attempt
    gptjobs.ok("wait", job, "--timeout", "180")

    assert losses(gptjobs, job) == pytest.approx(losses(gptjobs, never), rel=1e-3)
    events = [each for each in lines(gptjobs, job, "events.jsonl") if each["kind"] == "micro_batch"]
    assert [(each["step"], each["before"], each["windows"]) for each in events] == [(0, 7, 4), (0, 4, 2)]
    assert [each.micro_batch for each in checkpoint.attempts(gptjobs.layout, job)] == [None, 2]
    assert shown(gptjobs, job)["micro_batch"] == 2
    assert shown(gptjobs, job)["config"]["train"]["micro_batch"] == 0
    log = gptjobs.ok("logs", job)
    assert "out of memory on cpu at step 0: from 4 windows at once to 2" in log
    assert "attempt 1 ended: killed from outside: SIGKILL; queued again" in log
    assert "windows at once: 2 of 7, as memory ran out on cpu before" in log


def test_a_job_that_fits_in_no_way_fails_after_five_attempts_with_the_cause_and_a_hint(
    gptjobs: Commands, store: Store, scarce: Callable[[int], None]
) -> None:
    scarce(0)
    job = submit(gptjobs)
    assert gptjobs("wait", job, "--timeout", "180").returncode == 1
    assert [each.micro_batch for each in checkpoint.attempts(gptjobs.layout, job)] == [None, 1, 1, 1, 1]
    (listed,) = json.loads(gptjobs.ok("list", "--json"))["jobs"]
    assert (listed["state"], listed["cause"], listed["fruitless"]) == ("failed", "out of memory", {"out of memory": 5})
    assert listed["reason"] == "out of memory on cpu: no memory for 1 at once"
    for command in ("show", "explain"):
        told = gptjobs.ok(command, job)
        assert "out of memory on cpu" in told and "--block-size" in told
        assert "5 attempts without a new checkpoint ended so (out of memory)" in told
    ends = [line for line in gptjobs.ok("logs", job).splitlines() if line.startswith("attempt")]
    often = "attempts without a new checkpoint ended so (out of memory)"
    assert ends[3].endswith(f"no memory for 1 at once; queued again (4 {often}; after 5 it fails)")
    assert ends[4].startswith("attempt 5 ended, and with it the job: failed: out of memory")


def test_kills_from_outside_back_off_and_never_fail_a_job(gptjobs: Commands, workers: Workers, store: Store) -> None:
    workers.start()
    app = broker.connect(gptjobs.environment["GPTJOBS_REDIS_URL"])
    job = submit(gptjobs)

    def killed(attempt: int) -> Job:
        """The job after the trainer of that attempt was killed."""
        (trainer,) = eventually(lambda: trainers(job) if store.get(job).attempt == attempt else [])
        os.kill(trainer, signal.SIGKILL)
        return eventually(lambda: (found := store.get(job)).fruitless.get(Cause.KILLED) == attempt and found)

    killed(1)
    waits = killed(2)
    since = time.monotonic()
    assert (waits.state, waits.cause, waits.backoff_s) == ("queued", "killed", 10)
    assert "2 attempts without a new checkpoint ended so (killed)" in gptjobs.ok("explain", job)
    eventually(lambda: store.get(job).attempt == 3)
    assert time.monotonic() - since > 9.0
    for attempt, backoff_s in ((3, 20), (4, 40), (5, 80), (6, 160)):
        waits = killed(attempt)
        assert (waits.state, waits.backoff_s) == ("queued", backoff_s)
        broker.ring(app, waits)
    gptjobs.ok("wait", job, "--timeout", "180")
    assert store.get(job).attempt == 7
    assert store.get(job).fruitless == {}
