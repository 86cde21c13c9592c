"""`python -m worker.encode outputs/<job>/config.json SOURCE`: encode a job's data, as a child with a leash."""

import json
import sys
import time
from pathlib import Path

from gptjobs import storage
from gptjobs.config import Plan
from gptjobs.data import tokens
from gptjobs.errors import GptjobsError
from gptjobs.layout import Layout
from gptjobs.progress import Finished, StageBegan
from worker.child import Report, Stop, log, mind_the_leash

REPORT_EVERY_S = 1.0


def main() -> int:
    report, stop = Report(), Stop().listen()
    mind_the_leash()
    config, source = Path(sys.argv[1]), Path(sys.argv[2])
    layout = Layout(config.parents[2])
    plan = Plan.from_dict(json.loads(config.read_bytes()))
    done, size, reported = 0, source.stat().st_size, 0.0

    def advance(count: int) -> None:
        nonlocal done, reported
        done += count
        if stop.requested:
            raise _Stopped
        if time.monotonic() - reported >= REPORT_EVERY_S:
            reported = time.monotonic()
            report(StageBegan(stage="encoding", done=done / size))

    report(StageBegan(stage="encoding", done=0.0))
    log(f"encoding {source} ({size:,} bytes) with {plan.settled.train.encoding}")
    try:
        made = tokens.prepare(layout, source, plan.data_digest, plan.settled.train.encoding, advance)
    except _Stopped:
        report(Finished(outcome="stopped", step=None))
        return 0
    except (GptjobsError, OSError) as fault:
        error = storage.told(fault, f"{source} could not be encoded") if isinstance(fault, OSError) else fault
        log(f"error: {error.message}")
        finished = Finished(
            outcome="failed", step=None, reason=error.message, hint=error.hint, exit_code=error.exit_code,
            cause=storage.cause_of(error),
        )  # fmt: skip
        report(finished)
        return error.exit_code
    log(f"{made.token_count:,} tokens")
    report(Finished(outcome="finished", step=None))
    return 0


class _Stopped(Exception):
    pass


if __name__ == "__main__":
    sys.exit(main())
