"""`python -m worker.replay ROOT JOB FIRST LAST [--device D]`: run steps of a job again, for `gptjobs diagnose
--replay`.

From the newest checkpoint before them, of those that the attempt which made them descends from or wrote, quarantined or
not. Prints JSON lines: where it starts, the losses of the text by that checkpoint's weights, then each step of each
variant. Nothing is written.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from gptjobs import checkpoint, durable
from gptjobs.checkpoint import Attempt, Checkpoint
from gptjobs.config import Plan
from gptjobs.course import plan_of
from gptjobs.errors import GptjobsError
from gptjobs.layout import Layout
from worker.trainer.device import best_available, open_device
from worker.trainer.memory import keep_freed
from worker.trainer.replay import VARIANTS, Replayed, losses_of_text, replay

BESIDE = 20
"""batches before the steps, and after them, to hold theirs against"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.replay")
    parser.add_argument("root", type=Path)
    parser.add_argument("job")
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--token", type=int, help="of the attempt that made the steps")
    parser.add_argument("--left-out", type=int, nargs="*", default=[], help="steps whose updates were")
    parser.add_argument("--device")
    asked = parser.parse_args()
    try:
        _replay(asked)
    except GptjobsError as error:
        _say(refused=error.message, hint=error.hint)
        return error.exit_code
    except BrokenPipeError:
        return 130  # nobody listens any more
    return 0


def _say(**words: Any) -> None:
    print(json.dumps(durable.without_nan(words)), flush=True)


def _replay(asked: argparse.Namespace) -> None:
    keep_freed()
    layout = Layout(asked.root)
    plan = plan_of(layout, asked.job)
    token = asked.token or checkpoint.latest_token(layout, plan.job)
    attempt = checkpoint.read_attempt(layout, plan.job, token) if token else None
    start = start_before(layout, plan, attempt, asked.first)
    name = asked.device or best_available()
    device = open_device(name, plan.settled.train.precision)
    step = start.manifest.step if start else 0
    _say(start=start.name if start else None, step=step, device=name, variants=[each.name for each in VARIANTS])
    steps = range(max(step + 1, asked.first - BESIDE), asked.last + 1 + BESIDE)
    of_text = losses_of_text(layout, plan, attempt, start, steps, device)
    _say(text=of_text)
    for variant in VARIANTS:

        def tell(step: Replayed, name: str = variant.name) -> None:
            _say(variant=name, step=step.step, loss=step.loss)

        replay(layout, plan, attempt, start, asked.last, device, variant, asked.left_out, tell)


def start_before(layout: Layout, plan: Plan, attempt: Attempt | None, first: int) -> Checkpoint | None:
    """The newest checkpoint before the step `first`; None where there is none but the first weights."""
    until = dict(checkpoint.lineage(layout, plan.job, attempt.token)) if attempt else {}
    own = [
        each
        for each in checkpoint.of_job(layout, plan.job)
        if each.manifest.step < first and each.manifest.step <= until.get(each.manifest.token, -1)
    ]
    if own:
        return own[-1]
    return checkpoint.read(layout, plan.parent) if plan.parent else None


if __name__ == "__main__":
    sys.exit(main())
