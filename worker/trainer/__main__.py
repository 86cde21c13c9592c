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
from pathlib import Path
from typing import TYPE_CHECKING

from worker.child import Report, Stop, log, mind_the_leash

if TYPE_CHECKING:
    from gptjobs.progress import Finished


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.trainer")
    parser.add_argument("config", type=Path, help="outputs/<job>/config.json")
    parser.add_argument("--attempt", type=int, help="the token of an attempt that was opened already")
    parser.add_argument("--device", help="cuda, mps or cpu; by hand only")
    parser.add_argument("--leash", action="store_true", help="die when standard input ends or falls silent")
    arguments = parser.parse_args()
    report, stop = Report(), Stop().listen()
    if arguments.leash:
        mind_the_leash()

    from gptjobs import storage
    from gptjobs.errors import GptjobsError
    from gptjobs.progress import Finished

    try:
        finished = _train(arguments, report, stop)
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


def _train(arguments: argparse.Namespace, report: Report, stop: Stop) -> "Finished":
    from gptjobs import checkpoint, record, storage
    from gptjobs.config import Plan
    from gptjobs.errors import UsageError
    from gptjobs.layout import Layout

    config: Path = arguments.config.absolute()
    if not config.is_file():
        raise UsageError(f"there is no file {config}", hint="outputs/<job>/config.json of a job")
    layout = storage.identified(Layout(config.parents[2]))
    plan = Plan.from_dict(json.loads(config.read_bytes()))

    from worker.trainer import memory
    from worker.trainer.device import best_available, open_device
    from worker.trainer.loop import train

    memory.keep_freed()
    planned = plan.settled.train.windows_at_once
    if arguments.attempt is not None:
        attempt = checkpoint.read_attempt(layout, plan.job, arguments.attempt)
        start = checkpoint.read(layout, attempt.start) if attempt.start else None
    else:
        start = checkpoint.start_of_next_attempt(layout, plan.job, plan.parent)
        name = arguments.device or best_available()
        attempt = checkpoint.begin_attempt(
            layout,
            plan.job,
            checkpoint.latest_token(layout, plan.job) + 1,
            start,
            worker=f"by-hand@{socket.gethostname()}",
            device=name,
            micro_batch=record.micro_batch(record.read_attempts(layout, plan.job), name, planned),
        )
    with memory.told(attempt.device):
        device = open_device(attempt.device, plan.settled.train.precision)
        log(
            f"job {plan.job}, token {attempt.token}, on {attempt.device} in {device.precision}, "
            f"from {attempt.start or 'scratch'} to step {plan.settled.end_step}"
        )
        if attempt.micro_batch is not None:
            log(f"windows at once: {attempt.micro_batch} of {planned}, as memory ran out on {device.place.type} before")
        return train(layout, plan, attempt, start, device, report, stop)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # torch's threads need no farewell, and a slow interpreter exit would hold the device
    os._exit(code)
