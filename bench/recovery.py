"""`python -m bench.recovery`: seconds from the loss of a host to the next step of its job elsewhere.

Each time a worker and its trainer are killed while another worker is idle. The bound is a median of 15 s.
"""

import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

from gptjobs import checkpoint, record
from gptjobs.layout import Layout
from tests.conftest import Commands, Workers, english, eventually, start_server
from tests.e2e.test_loss_of_hosts import newest_step, submit, trainers

TIMES = 10


def seconds_to_recover(gptjobs: Commands, workers: Workers, job: str, spare: str) -> float:
    """Lose the host that trains the job, once `spare` is there; returns when its next attempt has made a step."""
    workers.start(spare)
    newest = newest_step(gptjobs, job)
    eventually(lambda: newest_step(gptjobs, job) > newest)
    (trainer,) = trainers(job)
    token = checkpoint.latest_token(gptjobs.layout, job)
    workers.processes[-2].kill()
    os.kill(trainer, signal.SIGKILL)
    began = time.monotonic()

    def trains_on() -> bool:
        past = record.read_attempts(gptjobs.layout, job)[-1]
        return past.attempt.token > token and past.progress.get("step", 0) > past.attempt.start_step

    eventually(trains_on)
    return time.monotonic() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(Path(folder) / "root")
        layout.make()
        (layout.root / "sources").mkdir()
        (layout.root / "sources" / "text.md").write_text(english(9000))
        server, url = start_server(Path(folder))
        gptjobs = Commands(layout, url)
        workers = Workers(gptjobs, Path(folder))
        try:
            workers.start("worker0")
            job = submit(gptjobs)
            eventually(lambda: newest_step(gptjobs, job) >= 50)
            taken = []
            for number in range(1, TIMES + 1):
                taken.append(seconds_to_recover(gptjobs, workers, job, f"worker{number}"))
                print(f"{taken[-1]:5.1f} s", flush=True)
        finally:
            workers.stop()
            server.kill()
            server.wait()
    print(f"median {statistics.median(taken):.1f} s, maximum {max(taken):.1f} s, over {TIMES} lost hosts")


if __name__ == "__main__":
    main()
