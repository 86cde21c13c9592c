"""`python -m bench.startup`: where the seconds go before a job's first step, and before that of an attempt after it.

A job is submitted to an idle worker; once it has a checkpoint its trainer is killed, and the worker starts the next
attempt. The moments are those that the product itself writes down: the job's submission, `began_at` of the attempt, the
attempt's own lines, the manifest of the tokens. Compilation has no moment of its own: it is part of the stage that
first computes. Options are passed on to `gptjobs submit train`, as `--n-layer 12 --n-embd 768 --n-head 12`.
"""

import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench import report
from gptjobs import checkpoint, history, planning, record
from gptjobs.checkpoint import Attempt
from gptjobs.layout import Layout
from tests.conftest import Commands, Workers, english, eventually, start_server
from tests.e2e.test_loss_of_hosts import newest_step, trainers

TIMES = 5
WORDS = 100_000
"""of each job's text, which is made into tokens anew"""
LIMIT_S = 600.0
"""for an attempt's first step"""
OPTIONS = (
    "--model", "nano", "--steps", "100000", "--batch-size", "12", "--block-size", "64", "--log-interval", "1",
    "--eval-interval", "1000000", "--checkpoint-interval", "20",
)  # fmt: skip
QUEUE, TOKENS, START, TOTAL = "queue, claim and plan", "tokens", "start of the trainer: Python, torch", "in all"

Parts = dict[str, float]
"""seconds, in order"""


def parts(layout: Layout, job: str, attempt: Attempt, since: float) -> Parts:
    """From `since`, seconds since the epoch, to the attempt's first step; empty before that."""
    lines = history.attempt_lines(layout, job, attempt.token)[0]
    steps = [line for line in lines if line["kind"] == "progress" and line["step"] > attempt.start_step]
    if not steps:
        return {}
    found: Parts = {QUEUE: attempt.began_at - since}
    part, moment = START, attempt.began_at
    encoded_at = _encoded_at(layout, job)
    if encoded_at > moment:
        found[TOKENS], moment = encoded_at - moment, encoded_at
    for line in [*(line for line in lines if line["kind"] == "stage" and line["time"] <= steps[0]["time"]), steps[0]]:
        found[part] = found.get(part, 0.0) + line["time"] - moment
        part, moment = line.get("stage", ""), line["time"]
    return {**found, TOTAL: moment - since}


def _encoded_at(layout: Layout, job: str) -> float:
    plan = record.read_plan(layout, job)
    assert plan is not None
    return planning.token_file_of(layout, plan).with_suffix(".json").stat().st_mtime


def first_step(gptjobs: Commands, job: str, after: int, since: float) -> Parts:
    """Of the attempt that follows the one with the token `after`, once it is made."""

    def look() -> Parts:
        newest = checkpoint.latest_token(gptjobs.layout, job)
        if newest <= after:
            return {}
        return parts(gptjobs.layout, job, checkpoint.read_attempt(gptjobs.layout, job, newest), since)

    return eventually(look, LIMIT_S)


def one_job(gptjobs: Commands, number: int, options: list[str]) -> tuple[Parts, Parts]:
    """From its submission to its first step, and from its trainer's death to the next attempt's first."""
    layout, name = gptjobs.layout, f"sources/text{number}.md"
    (layout.root / name).write_text(english(WORDS + number))
    job = gptjobs.ok("submit", "train", "-q", *OPTIONS, *options, "--data", name)
    submitted = first_step(gptjobs, job, 0, record.read_spec(layout, job).submitted_at)
    eventually(lambda: newest_step(gptjobs, job), LIMIT_S)
    token = checkpoint.latest_token(layout, job)
    (trainer,) = trainers(job)
    os.kill(trainer, signal.SIGKILL)
    killed = first_step(gptjobs, job, token, time.time())
    gptjobs.ok("cancel", job)
    eventually(lambda: not trainers(job))
    return submitted, killed


def table(submitted: list[Parts], killed: list[Parts]) -> str:
    heads = ["s until the first step", "after submission", "least to most", "after a kill", "least to most"]
    return report.table(heads, [[part, *_cells(part, submitted), *_cells(part, killed)] for part in submitted[0]])


def _cells(part: str, measured: list[Parts]) -> list[str]:
    seconds = [each[part] for each in measured if part in each]
    if not seconds:
        return ["", ""]
    return [f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f} to {max(seconds):.2f}"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(Path(folder) / "root")
        layout.make()
        (layout.root / "sources").mkdir()
        server, url = start_server(Path(folder))
        gptjobs = Commands(layout, url)
        threads = len(os.sched_getaffinity(0))
        gptjobs.environment["OMP_NUM_THREADS"] = str(threads)
        workers = Workers(gptjobs, Path(folder))
        measured = []
        try:
            workers.start()
            for number in range(TIMES):
                measured.append(one_job(gptjobs, number, sys.argv[1:]))
                print(", ".join(f"{each[TOTAL]:.1f} s" for each in measured[-1]), file=sys.stderr, flush=True)
        finally:
            workers.stop()
            server.kill()
            server.wait()
    print(report.machine(threads))
    print()
    print(table([first for first, _ in measured], [second for _, second in measured]))


if __name__ == "__main__":
    main()
