"""`python -m worker.trainer outputs/<job>/config.json`: one attempt, with no Redis and no Celery.

By hand it opens an attempt of its own; under a supervisor it is told which one it is.
"""

import argparse
import json
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from worker.child import Report, Stop, log, mind_the_leash
from worker.trainer.launch import PEER_LOST, PeerLost, launch

if TYPE_CHECKING:
    from gptjobs.checkpoint import Attempt, Checkpoint
    from gptjobs.config import Plan
    from gptjobs.layout import Layout
    from gptjobs.progress import Finished


def main() -> int:
    """The exit code; of several ranks that of the first that failed, or the signal that ended it, negative."""
    parser = argparse.ArgumentParser(prog="python -m worker.trainer")
    parser.add_argument("config", type=Path, help="outputs/<job>/config.json")
    parser.add_argument("--attempt", type=int, help="the token of an attempt that was opened already")
    parser.add_argument("--device", help="cuda, mps or cpu; by hand only")
    parser.add_argument("--leash", action="store_true", help="die when standard input ends or falls silent")
    parser.add_argument("--rank", type=int, help="which one of several; for the launcher only")
    parser.add_argument("--meet", type=Path, help="the file where ranks find each other; for the launcher only")
    arguments = parser.parse_args()
    report, stop = Report(), Stop().listen()
    if arguments.rank is not None:
        mind_the_leash(of_group=False)
    elif arguments.leash:
        mind_the_leash()

    from gptjobs import storage
    from gptjobs.errors import GptjobsError
    from gptjobs.progress import Finished

    try:
        opened = _open(arguments)
        gpus = opened.plan.settled.train.gpus
        if gpus > 1 and arguments.rank is None:
            token = str(opened.attempt.token)
            return launch(["-m", "worker.trainer", str(arguments.config), "--attempt", token], gpus, report, stop)
        finished = _train(opened, arguments, report, stop)
        if arguments.rank:
            return 0  # the first rank says it
    except PeerLost:
        return PEER_LOST
    except GptjobsError as error:
        log(f"error: {error.message}")
        finished = Finished(
            outcome="failed", step=None, reason=error.message, hint=error.hint, exit_code=error.exit_code,
            cause=storage.cause_of(error),
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001  # the edge of the process: the last line tells what happened
        log(traceback.format_exc())
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
        finished = Finished(outcome="failed", step=None, reason=reason, exit_code=1, cause=storage.cause_of(error))
    report(finished)
    log(f"{finished.outcome}" + (f": {finished.reason}" if finished.reason else ""))
    return finished.exit_code


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The attempt, and what it trains."""

    layout: "Layout"
    plan: "Plan"
    attempt: "Attempt"
    start: "Checkpoint | None"


def _open(arguments: argparse.Namespace) -> Opened:
    from gptjobs import checkpoint, record, storage
    from gptjobs.config import Plan
    from gptjobs.errors import UsageError
    from gptjobs.layout import Layout

    config: Path = arguments.config.absolute()
    if not config.is_file():
        raise UsageError(f"there is no file {config}", hint="outputs/<job>/config.json of a job")
    layout = storage.identified(Layout(config.parents[2]))
    plan = Plan.from_dict(json.loads(config.read_bytes()))
    if arguments.attempt is not None:
        attempt = checkpoint.read_attempt(layout, plan.job, arguments.attempt)
        start = checkpoint.read(layout, attempt.start) if attempt.start else None
    else:
        from worker.trainer.device import best_available

        planned = plan.settled.train.windows_at_once
        start = checkpoint.start_of_next_attempt(layout, plan.job, plan.parent)
        name = arguments.device or best_available()
        past = record.read_attempts(layout, plan.job)
        attempt = checkpoint.begin_attempt(
            layout,
            plan.job,
            checkpoint.latest_token(layout, plan.job) + 1,
            start,
            worker=f"by-hand@{socket.gethostname()}",
            device=name,
            micro_batch=record.micro_batch(past, name, planned),
            skips=record.windows_of_spikes(past),
        )
    return Opened(layout=layout, plan=plan, attempt=attempt, start=start)


def _train(opened: Opened, arguments: argparse.Namespace, report: Report, stop: Stop) -> "Finished":
    from gptjobs.progress import Line, MicroBatch
    from worker.trainer import memory, ranks
    from worker.trainer.device import of_rank, open_device
    from worker.trainer.loop import train

    plan, attempt = opened.plan, opened.attempt
    settled, rank = plan.settled.train, arguments.rank or 0
    name = of_rank(attempt.device, rank) if settled.gpus > 1 else attempt.device

    def of_others(line: Line) -> None:
        """All but the first rank tell only what is their own."""
        if isinstance(line, MicroBatch):
            report(line)

    memory.keep_freed()
    with ranks.told(), memory.told(name):
        device = open_device(name, settled.precision)
        if rank == 0:
            log(
                f"job {plan.job}, token {attempt.token}, on {attempt.device} in {device.precision}, "
                f"from {attempt.start or 'scratch'} to step {plan.settled.end_step}"
            )
        if rank == 0 and attempt.micro_batch is not None:
            log(
                f"windows at once: {attempt.micro_batch} of {settled.windows_at_once}, as memory ran out on "
                f"{device.place.type} before"
            )
        together = ranks.join(rank, settled.gpus, arguments.meet, device) if settled.gpus > 1 else ranks.ALONE
        says = report if together.is_first else of_others
        return train(opened.layout, plan, attempt, opened.start, device, says, stop, together)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    if code < 0:
        with suppress(OSError):  # of those that cannot be caught
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # torch's threads need no farewell, and a slow interpreter exit would hold the device
    os._exit(code)
