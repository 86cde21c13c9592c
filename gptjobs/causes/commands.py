"""The commands that test a cause, as they are typed."""

import shlex

from gptjobs.case import Case, Rise
from gptjobs.config import TRAIN_FIELDS


def resume_command(case: Case, words: str, *, before: int | None = None, which: str = "last") -> str:
    """The command that goes on from the checkpoint before a step, or from the last; a log has none."""
    if case.plan is None:
        return f"gptjobs submit resume --from CHECKPOINT {words}"
    steps = [each for each in case.checkpoints if before is None or each < before - 1]
    if steps:
        at = which if before is None else str(max(steps))
        return f"gptjobs submit resume --from {shlex.quote(case.reference)}@{at} {words}"
    if case.parent is not None:
        return f"gptjobs submit resume --from {shlex.quote(case.parent)} {words}"
    return train_command(case, words)


def train_command(case: Case, words: str) -> str:
    shape = ""
    if case.plan is not None:
        model = case.plan.settled.model
        shape = f"--n-layer {model.n_layer} --n-head {model.n_head} --n-embd {model.n_embd} "
        shape += f"--encoding {case.plan.settled.train.encoding} "
    return f"gptjobs submit train --data {data_of(case)} {shape}{words}"


def encoding_of(case: Case) -> str:
    """As an option, where it is not the usual one."""
    encoding = case.plan.settled.train.encoding if case.plan else TRAIN_FIELDS["encoding"].default
    return f" --encoding {encoding}" if encoding != TRAIN_FIELDS["encoding"].default else ""


def replay_commands(case: Case, rise: Rise) -> tuple[str, ...]:
    if case.plan is None:
        return ()
    return (f"gptjobs diagnose {shlex.quote(case.reference)} --replay {max(1, rise.since - 2)}:{rise.step}",)


def step_to_go_back_to(case: Case, rise: Rise) -> int | None:
    steps = [each for each in case.checkpoints if each < rise.since - 1]
    return max(steps, default=None)


def steps_left(case: Case, rise: Rise) -> int:
    end = case.plan.settled.end_step if case.plan else rise.step + 500
    return end - (step_to_go_back_to(case, rise) or (case.plan.settled.start_step if case.plan else 0))


def data_of(case: Case) -> str:
    return shlex.quote(case.plan.settled.train.data) if case.plan else "FILE"


def nice(value: float) -> str:
    """Two digits are enough."""
    return f"{value:.2g}"
