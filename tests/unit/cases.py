"""Made cases for diagnosis: courses of a loss by a formula, spikes with their flight records, odd text."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gptjobs.case import Case, Odd, Point, Rise, TextFacts
from gptjobs.causes import possible_causes
from gptjobs.causes.cause import PossibleCause
from gptjobs.config import Plan, settle
from tests.unit.conftest import NANO, typed

EVERY = 10
"""steps between lines"""
BATCH, BLOCK = NANO.train.batch_size, NANO.train.block_size
TOKENS = BATCH * BLOCK
"""of a step"""
ENTROPY = 3.0
"""of the made text's tokens, in nats"""
PLAN = Plan(job="first", kind="train", settled=NANO, data_name="text", data_digest="d" * 64, parent=None)
ODD = Odd(first=40_000, last=50_000, line=300, score=40.0, why="compresses to 0.02 of its bytes", text="spam spam")
TEXT = TextFacts(tokens=1_000_000, unigram=ENTROPY)


def noisy(loss: Callable[[int], float], noise: float = 0.02) -> Callable[[int], float]:
    """The same course, each line off by about so much."""
    draw = random.Random(7)
    return lambda step: loss(step) + draw.gauss(0, noise)


def level(loss: float) -> Callable[[int], float]:
    return noisy(lambda step: loss)


def falling(first: float, last: float, steps: float) -> Callable[[int], float]:
    return noisy(lambda step: last + (first - last) * math.exp(-step / steps))


def points(
    loss: Callable[[int], float], steps: int = 1000, *, first: int = 0, job: str = "first", every: int = EVERY,
    rate: Callable[[int], float] = lambda step: 6e-4, norm: Callable[[int], float] = lambda step: 0.5, **values: Any,
) -> tuple[Point, ...]:  # fmt: skip
    """Lines of a job, from a first step on."""
    return tuple(
        Point(
            step=step, tokens=TOKENS * step, train_loss=loss(step), learning_rate=rate(step), grad_norm=norm(step),
            tokens_per_s=1e4, job=job, **values,
        )
        for step in range(first, steps + 1, every)
    )  # fmt: skip


def planned(**overrides: Any) -> Plan:
    """NANO's plan with other values."""
    return replace(PLAN, settled=settle(typed(**{**NANO_SAID, **overrides})))


NANO_SAID: Mapping[str, Any] = {
    "model": "nano", "data": "sources/text.md", "steps": 1000, "batch_size": BATCH, "block_size": BLOCK,
    "warmup_steps": 20, "seed": 7,
}  # fmt: skip


def case(course: Sequence[Point], **changes: Any) -> Case:
    """Of a job from scratch, `owls`."""
    values: dict[str, Any] = {
        "name": "owls", "reference": "owls", "points": tuple(course), "plan": planned(),
        "overrides": typed(**NANO_SAID), "text": TEXT, "batch_size": BATCH, "block_size": BLOCK,
        "checkpoints": (200, 400, 600, 800, 1000),
    }  # fmt: skip
    return Case(**{**values, **changes})


def log(course: Sequence[Point], **changes: Any) -> Case:
    return case(
        course, **{"name": "old.log", "reference": "", "plan": None, "overrides": {}, "checkpoints": ()} | changes
    )


def rise(
    since: int = 500, step: int = 510, *, rate: Callable[[int], float] = lambda step: 6e-4,
    norm: Callable[[int], float] = lambda step: 0.5, flown: bool = True, **changes: Any,
) -> Rise:  # fmt: skip
    """A spike at 500, seen at 510, with a flight record of 200 steps."""
    steps = [
        {"step": each, "loss": 2.5 if each < since else 6.0, "learning_rate": rate(each), "grad_norm": norm(each)}
        for each in range(max(1, step - 199), step + 1)
    ]
    values: dict[str, Any] = {
        "reason": f"the loss rose from 2.5000 to 6.0000 from step {since} on", "token": 1,
        "windows": (BATCH * (since - 2), BATCH * step), "starts": tuple(range(600_000, 606_000, BLOCK)),
        "steps": tuple(steps) if flown else (),
    }  # fmt: skip
    return Rise(since=since, step=step, **{**values, **changes})


def named(made: Case, name: str) -> PossibleCause:
    """The cause of that name; fails where it is not named."""
    found = {each.name: each for each in possible_causes(made)}
    assert name in found, sorted(found)
    return found[name]


def names(made: Case) -> list[str]:
    return [each.name for each in possible_causes(made)]
