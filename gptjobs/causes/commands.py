"""The commands that test a cause, as they are typed."""

import shlex

from gptjobs.case import Case, Rise
from gptjobs.causes.facts import highest_rate
from gptjobs.config import MODEL_FIELDS, TRAIN_FIELDS, Overrides, as_typed, option

_OF_RATE = (
    "learning_rate", "schedule", "warmup_steps", "decay_steps", "min_learning_rate", "schedule_start",
)  # fmt: skip
"""of which a new value makes the old ones of the others void"""
_FOR_A_LOG = 500
"""steps that a test of a log takes"""


def resume_command(case: Case, words: str, *, before: int | None = None, which: str = "last") -> str:
    """The command that goes on from the checkpoint before a step, or from the last; CHECKPOINT stands for one where
    none is known. What the job was asked for is in a checkpoint of its own already, in its parent not."""
    if case.plan is None:
        return f"gptjobs submit resume --from CHECKPOINT {words}"
    steps = [each for each in case.checkpoints if before is None or each < before - 1]
    if steps:
        at = which if before is None else str(max(steps))
        return (
            f"gptjobs submit resume --from {shlex.quote(case.reference)}@{at} {_with_a_rate(case, max(steps), words)}"
        )
    if case.parent is not None:
        flag = "--accept-data-change " if case.accepts_data_change else ""
        if not set(_OF_RATE) & case.overrides.keys():
            words = _with_a_rate(case, case.plan.settled.start_step, words)
        return f"gptjobs submit resume --from {shlex.quote(case.parent)} {flag}{_as_asked(case, words)}{words}"
    if case.plan.parent is not None:
        return f"gptjobs submit resume --from CHECKPOINT {words}"
    return train_command(case, words)


def train_command(case: Case, words: str) -> str:
    """The job anew, from scratch, as it was asked for but for these words."""
    return f"gptjobs submit train {_as_asked(case, words) if case.plan else '--data FILE '}{words}"


def can_resume(case: Case, rise: Rise) -> bool:
    """Whether there is a checkpoint before it."""
    return case.plan is None or case.parent is not None or step_to_go_back_to(case, rise) is not None


def _as_asked(case: Case, words: str) -> str:
    """The options of what the job was asked for, but those that the words say otherwise."""
    void = {name for name in TRAIN_FIELDS if option(name) in words.split()}
    void |= set(_OF_RATE) if void & set(_OF_RATE) else set()
    if case.parent is not None:
        void |= set(MODEL_FIELDS)
    asked: Overrides = {name: given for name, given in case.overrides.items() if name not in void}
    return "".join(f"{shlex.quote(word)} " for word in as_typed(asked))


def _with_a_rate(case: Case, start: int, words: str) -> str:
    """With a learning rate, where the schedule would end at nought before the steps do: that is refused."""
    assert case.plan is not None
    train, said = case.plan.settled.train, words.split()
    if any(option(name) in said for name in _OF_RATE) or option("steps") not in said:
        return words
    end = start + int(said[said.index(option("steps")) + 1])
    if train.learning_rate_at(end - 1) > 0:
        return words
    return f"{words} --learning-rate {nice((highest_rate(case) or train.learning_rate) / 3)}"


def encoding_of(case: Case) -> str:
    """As an option, where it is not the usual one."""
    usual = TRAIN_FIELDS["encoding"].default
    encoding = case.plan.settled.train.encoding if case.plan else case.text.encoding if case.text else None
    return f" --encoding {encoding}" if encoding not in (None, usual) else ""


def replay_commands(case: Case, rise: Rise) -> tuple[str, ...]:
    if case.plan is None:
        return ()
    return (f"gptjobs diagnose {shlex.quote(case.reference)} --replay {max(1, rise.since - 2)}:{rise.step}",)


def step_to_go_back_to(case: Case, rise: Rise) -> int | None:
    """That of the job's newest checkpoint whose weights had not risen yet: a step's loss is that of the weights
    before it."""
    steps = [each for each in case.checkpoints if each < rise.since - 1]
    return max(steps, default=None)


def steps_left(case: Case, rise: Rise) -> int:
    """Of the job, from the checkpoint to go back to on; at least so many that a rise would show."""
    if case.plan is None:
        return _FOR_A_LOG
    start = step_to_go_back_to(case, rise) or case.plan.settled.start_step
    return max(100, case.plan.settled.end_step - start)


def data_of(case: Case) -> str:
    named = case.plan.settled.train.data if case.plan else case.text.source if case.text else None
    return shlex.quote(named) if named else "FILE"


def nice(value: float) -> str:
    """Two digits are enough."""
    return f"{value:.2g}"
