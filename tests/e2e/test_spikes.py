"""A spike in a job of a real worker: it goes back and on, or ends."""

import json
from pathlib import Path

import pytest

from gptjobs import checkpoint
from tests.conftest import Commands, Workers
from tests.e2e.test_line import TINY

SPIKING = """
import sys
if "worker.trainer" in sys.orig_argv and sys.orig_argv[sys.orig_argv.index("--attempt") + 1] in {attempts}:
    import torch
    from worker.trainer.model import GPT
    loss, updates = GPT.loss, 0
    def spiking(*words):
        global updates
        updates += 1
        return loss(*words) + (5.0 if updates > 100 else 0.0)
    GPT.loss = spiking
"""


def spiking(gptjobs: Commands, folder: Path, attempts: list[str]) -> None:
    """The loss of these attempts is higher from their 101st update on."""
    (folder / "sitecustomize.py").write_text(SPIKING.format(attempts=attempts))
    gptjobs.environment["PYTHONPATH"] = str(folder)


def submitted(gptjobs: Commands, *words: str) -> str:
    usual = ("--data", "sources/text.md", "--checkpoint-interval", "30")
    return gptjobs.ok("submit", "train", "-q", *TINY, *usual, *words)


def test_a_job_goes_back_before_its_spike_and_ends_as_if_its_windows_were_not_there(
    gptjobs: Commands, workers: Workers, tmp_path: Path
) -> None:
    spiking(gptjobs, tmp_path, ["1"])
    workers.start()
    job = submitted(gptjobs, "--on-spike", "rollback", "--steps", "150")
    gptjobs.ok("wait", job, "--timeout", "120")
    first, second = checkpoint.attempts(gptjobs.layout, job)
    assert (first.start_step, second.start_step) == (0, 90)
    ((began, ended),) = second.skips
    assert began == 4 * 99 and (ended - began) % 4 == 0
    last = checkpoint.counting(gptjobs.layout, job)[-1].manifest
    assert (last.step, last.cursor.windows) == (150, 4 * 150 + ended - began)
    events = [json.loads(line) for line in (gptjobs.layout.outputs / job / "events.jsonl").read_text().splitlines()]
    assert [each["since"] for each in events if each["kind"] == "alert"] == [101]
    reasons = [each["reason"] for each in events if each["kind"] == "ended"]
    assert "spike: the loss rose from" in reasons[0] and reasons[1] == "finished"


@pytest.mark.parametrize(
    ("words", "attempts", "reason"),
    [
        (("--on-spike", "stop"), 1, "spike: the loss rose from"),
        (("--on-spike", "rollback", "--max-rollbacks", "1"), 2, "spike: 100 updates in a row were left out"),
    ],
)
def test_a_job_that_may_not_go_back_or_has_too_often_has_diverged(
    gptjobs: Commands, workers: Workers, tmp_path: Path, words: tuple[str, ...], attempts: int, reason: str
) -> None:
    spiking(gptjobs, tmp_path, ["1", "2", "3"])
    workers.start()
    job = submitted(gptjobs, *words, "--steps", "300")
    ended = gptjobs("wait", job, "--timeout", "120")
    assert ended.returncode == 1
    shown = json.loads(gptjobs.ok("show", job, "--json"))
    assert shown["state"] == "diverged" and reason in shown["reason"]
    assert shown["attempt"] == attempts
    assert "--learning-rate" in gptjobs.ok("explain", job)
