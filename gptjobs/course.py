"""What a job saw: which windows of its data each step trained on, along its lineage."""

from collections.abc import Iterator
from dataclasses import dataclass

from gptjobs import checkpoint, record
from gptjobs.config import Plan
from gptjobs.errors import NotFound, UsageError
from gptjobs.layout import Layout


@dataclass(frozen=True)
class Step:
    """An update: `step` is what it made, `seen` the windows before it in the job's order, `tokens` those trained on
    once it was made."""

    step: int
    seen: int
    tokens: int


def plan_of(layout: Layout, job: str) -> Plan:
    """Raises NotFound for a job that no worker took yet."""
    plan = record.read_plan(layout, job)
    if plan is None:
        raise NotFound(f"job {job} has not begun", hint=f"gptjobs explain {job}")
    return plan


def steps(layout: Layout, job: str) -> Iterator[Step]:
    """All of a job's steps, also those that it has not made yet."""
    plan = plan_of(layout, job)
    settled, train = plan.settled, plan.settled.train
    seen, tokens = 0, 0
    if plan.parent is not None:
        manifest = checkpoint.read(layout, plan.parent).manifest
        seen, tokens = manifest.windows_behind(plan), manifest.tokens
    attempts = checkpoint.attempts(layout, job)
    skips = attempts[-1].skips if attempts else ()
    for step in range(settled.start_step + 1, settled.end_step + 1):
        seen = checkpoint.skipped(seen, skips)
        tokens += train.batch_size * train.block_size
        yield Step(step, seen, tokens)
        seen += train.batch_size


def between(text: str) -> tuple[int, int]:
    """What `2.0M:2.5M` means, in tokens; raises UsageError for what means nothing."""
    first, colon, last = text.partition(":")
    try:
        found = _count(first), _count(last)
    except (ValueError, OverflowError):
        found = (0, 0)
    if not colon or not 0 <= found[0] < found[1]:
        raise UsageError(f"{text} is no range of tokens", hint="2.0M:2.5M, or 2000000:2500000")
    return found


def _count(text: str) -> int:
    """Of `2.5M`, `300k`, `1e6`; raises ValueError, or OverflowError."""
    scale = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}.get(text.strip()[-1:].lower())
    return int(float(text.strip()[:-1]) * scale) if scale else int(float(text))
