"""Following a real job: its picture in a terminal, and its log over the attempts of two workers."""

import re
import subprocess

from gptjobs import checkpoint
from gptjobs.store import Store
from tests.conftest import Commands, Workers, eventually
from tests.e2e.test_line import TINY
from tests.terminal import LINES, Terminal

TRAIN = ("submit", "train", *TINY, "--data", "sources/text.md", "--name", "owls")


def test_submit_and_follow_shows_the_job_until_it_ends(gptjobs: Commands, workers: Workers) -> None:
    workers.start()
    terminal = Terminal(gptjobs, *TRAIN, "--steps", "3000", "--eval-interval", "1000", "--follow")
    try:
        assert terminal.end() == 0
    finally:
        terminal.close()
    shares = [int(each) for each in re.findall(r"of 3,000 +(\d+)%", terminal.text)]
    assert len(set(shares)) > 2 and shares == sorted(shares) and shares[-1] == 100
    left = "\n".join(terminal.left_behind)
    assert left.startswith("owls  finished") and len(terminal.left_behind) < LINES
    for expected in ("checkpoint of step 3,000, val loss", "● validation at context 32", "── log", "tokens/s"):
        assert expected in left


def test_logs_follow_a_job_from_a_killed_worker_to_the_next(gptjobs: Commands, workers: Workers, store: Store) -> None:
    first = workers.start("first")
    job = gptjobs.ok(*TRAIN, "-q", "--steps", "100000", "--checkpoint-interval", "50")
    process = gptjobs.start("logs", "-f", job, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:
        eventually(lambda: checkpoint.counting(gptjobs.layout, job))
        workers.start("second")
        first.kill()
        eventually(lambda: len(gptjobs.layout.log_files(job)) == 2)
        start = checkpoint.attempts(gptjobs.layout, job)[-1].start_step
        eventually(lambda: store.get(job).progress.get("step", 0) > start)
        gptjobs.ok("cancel", job)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 10
    assert out == b"".join(path.read_bytes() for path in gptjobs.layout.log_files(job))
    assert re.search(rb"^attempt 2 on second@\S+, cpu$", err, re.M)
