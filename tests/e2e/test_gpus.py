"""A job that takes several slots of one worker, through the real queue."""

import json
import os
import signal
from pathlib import Path

from gptjobs import checkpoint
from gptjobs.store import Store
from tests.conftest import Commands, Workers, eventually
from tests.e2e.test_loss_of_hosts import newest_step, trainers

JOB = (
    "--model", "nano", "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--batch-size", "4", "--block-size", "32",
    "--eval-tokens", "512", "--eval-interval", "1000000", "--checkpoint-interval", "50", "--steps", "1500",
    "--data", "sources/text.md",
)  # fmt: skip


def submit(gptjobs: Commands, gpus: int) -> str:
    return gptjobs.ok("submit", "train", "-q", *JOB, "--gpus", str(gpus))


def rank_of(process: int) -> str | None:
    words = Path(f"/proc/{process}/cmdline").read_text().split("\0")
    return words[words.index("--rank") + 1] if "--rank" in words else None


def test_a_job_takes_two_slots_at_once_and_outlives_the_death_of_a_rank(
    gptjobs: Commands, workers: Workers, store: Store
) -> None:
    workers.start("small")
    workers.start("large", slots=2)
    job = submit(gptjobs, 2)
    waits = submit(gptjobs, 3)
    eventually(lambda: newest_step(gptjobs, job) >= 50)
    busy = {each.name.partition("@")[0]: (each.busy, len(each.slots)) for each in store.workers()}
    assert busy == {"small": (0, 1), "large": (2, 2)}
    (second,) = [each for each in trainers(job) if rank_of(each) == "1"]
    os.kill(second, signal.SIGKILL)
    gptjobs.ok("wait", job, "--timeout", "120")

    attempts = checkpoint.attempts(gptjobs.layout, job)
    assert [(each.worker.partition("@")[0], each.device) for each in attempts] == [("large", "cpu")] * 2
    assert attempts[1].start_step >= 50
    assert newest_step(gptjobs, job) == 1500
    log = gptjobs.ok("logs", job)
    assert "rank 1 of 2 ended: signal SIGKILL; with it all others" in log
    assert "attempt 1 ended: killed from outside: SIGKILL; queued again" in log
    eventually(lambda: all(each.busy == 0 for each in store.workers()))
    assert "It asks for 3 devices at once, and no worker offers that." in gptjobs.ok("explain", waits)
    assert json.loads(gptjobs.ok("show", waits, "--json"))["state"] == "queued"


def test_submit_says_where_no_worker_has_as_many_devices(gptjobs: Commands, workers: Workers) -> None:
    workers.start()
    done = gptjobs("submit", "train", *JOB, "--gpus", "2")
    assert done.returncode == 0
    assert "no worker offers 2 devices at once; the job waits for one (gptjobs worker start --slots 2)" in done.stderr
    refused = gptjobs("submit", "train", "-q", *JOB, "--gpus", "2", "--require-worker")
    assert refused.returncode == 6
    of_metal = gptjobs("submit", "train", "-q", *JOB, "--gpus", "2", "--device", "mps")
    assert of_metal.returncode == 2 and "Metal has one device" in of_metal.stderr
