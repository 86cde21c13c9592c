"""What a job saw: which of its steps trained on which tokens, along its lineage."""

from dataclasses import dataclass

from gptjobs import checkpoint, record
from gptjobs.checkpoint import Attempt
from gptjobs.config import Plan
from gptjobs.errors import NotFound
from gptjobs.layout import Layout
from gptjobs.ranges import Range


@dataclass(frozen=True, kw_only=True)
class Course:
    """A job's way through its data: from `windows` seen before its first step on, in the order of its plan, without
    what its newest attempt leaves out. `tokens` were trained on before it."""

    plan: Plan
    windows: int
    tokens: int
    attempt: Attempt | None

    @property
    def steps(self) -> range:
        """All of the job's, also those that it has not made yet; a step's number is what the update made."""
        settled = self.plan.settled
        return range(settled.start_step + 1, settled.end_step + 1)

    def steps_of_tokens(self, chosen: Range) -> range:
        """The steps that trained on these tokens, of all that were trained on."""
        train = self.plan.settled.train
        size = train.batch_size * train.block_size
        first, last = ((each - self.tokens) // size for each in (chosen[0], chosen[1] - 1))
        return range(self.steps.start + max(0, first), min(self.steps.stop, self.steps.start + last + 1))


def plan_of(layout: Layout, job: str) -> Plan:
    """Raises NotFound for a job that no worker took yet."""
    plan = record.read_plan(layout, job)
    if plan is None:
        raise NotFound(f"job {job} has not begun", hint=f"gptjobs explain {job}")
    return plan


def course_of(layout: Layout, job: str) -> Course:
    """Raises NotFound for a job that no worker took yet."""
    plan = plan_of(layout, job)
    windows, tokens = 0, 0
    if plan.parent is not None:
        manifest = checkpoint.read(layout, plan.parent).manifest
        windows, tokens = manifest.windows_behind(plan), manifest.tokens
    attempts = checkpoint.attempts(layout, job)
    return Course(plan=plan, windows=windows, tokens=tokens, attempt=attempts[-1] if attempts else None)
