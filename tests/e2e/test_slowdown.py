"""A job of a real worker that is slowed down: the alert, where it is seen, and that it passes."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import Commands, Workers, eventually
from tests.e2e.test_line import TINY
from tests.e2e.test_loss_of_hosts import newest_step, shown, trainers

QUICK = """
from gptjobs import slowdown
slowdown.LOOK_S, slowdown.SLOW_S = 0.3, 2.0
"""
"""what is minutes otherwise"""
STOPPED_S, GOES_S = 0.18, 0.02


@contextmanager
def slowed_down(trainer: int) -> Iterator[None]:
    """The process stands still for nine tenths of the time."""
    over = threading.Event()

    def stop_and_go() -> None:
        while not over.is_set():
            os.kill(trainer, signal.SIGSTOP)
            over.wait(STOPPED_S)
            os.kill(trainer, signal.SIGCONT)
            over.wait(GOES_S)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def events(gptjobs: Commands, job: str) -> list[str]:
    path = gptjobs.layout.events_file(job)
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [each["name"] for each in found if each["kind"] == "alert"]


def test_a_job_that_is_slowed_down_says_so_with_what_its_host_is_like_until_it_is_over(
    gptjobs: Commands, workers: Workers, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(QUICK)
    gptjobs.environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    workers.start()
    usual = ("--data", "sources/text.md", "--steps", "1000000", "--checkpoint-interval", "500")
    job = gptjobs.ok("submit", "train", "-q", *TINY, *usual)
    # looks enough to know the job's first minutes
    eventually(lambda: newest_step(gptjobs, job) > 0)
    learned = eventually(lambda: shown(gptjobs, job)["tokens_per_s"]) * 5.0
    eventually(lambda: shown(gptjobs, job)["tokens"] > learned)
    (trainer,) = trainers(job)
    with slowed_down(trainer):
        (alert,) = eventually(lambda: shown(gptjobs, job)["alerts"])
        assert "training is slow" in gptjobs.ok("explain", job)
    assert alert["name"] == "slowdown" and alert["tokens_per_s"] < 0.7 * alert["usual_tokens_per_s"]
    assert alert["host"]["memory"]["total"] > alert["host"]["memory"]["available"] > 0
    assert "memory left" in alert["reason"]
    eventually(lambda: events(gptjobs, job) == ["slowdown"])
    eventually(lambda: "training is slow" not in gptjobs.ok("explain", job))
    assert "alert: training is slow" in gptjobs.ok("logs", "-n", "100000", job)
    gptjobs.ok("cancel", job)
    gptjobs("wait", job, "--timeout", "60")
    assert f"- step {alert['step']}, slowdown: training is slow" in gptjobs.layout.summary_file(job).read_text()
