"""Runs some steps of a job again, from a checkpoint before them, as they were or with one thing changed; writes
nothing."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from gptjobs.checkpoint import Attempt, Checkpoint
from gptjobs.config import Plan
from gptjobs.layout import Layout
from gptjobs.replayed import AS_IT_WAS, RESET, TENTH
from worker.trainer import state
from worker.trainer.batches import Batches
from worker.trainer.device import Device
from worker.trainer.loop import compute_gradients, loss_of_batch
from worker.trainer.memory import Fitting
from worker.trainer.ranks import ALONE


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is otherwise than in the job: the learning rate by a factor, Adam's moments begun anew."""

    name: str
    rate: float = 1.0
    resets_moments: bool = False


VARIANTS = (
    Variant(name=AS_IT_WAS),
    Variant(name=RESET, resets_moments=True),
    Variant(name=TENTH, rate=0.1),
)


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A step that was made again."""

    step: int
    loss: float


def losses_of_text(
    layout: Layout, plan: Plan, attempt: Attempt | None, start: Checkpoint | None, steps: range, device: Device
) -> dict[int, float]:
    """The loss of each of these steps' batches by the weights of the checkpoint, and of no other: what the text alone
    does."""
    at, data, fitting = _loaded(layout, plan, attempt, start, device, resets=False)
    config, found = plan.settled.train, {}
    seen = at.windows
    for step in range(at.step + 1, steps.stop):
        following = data.following(seen, config.batch_size)
        seen = following.end
        if step in steps:
            batch = data.read(following.starts)
            found[step] = loss_of_batch(at, batch, config, device, ALONE, fitting)
    return found


def replay(
    layout: Layout, plan: Plan, attempt: Attempt | None, start: Checkpoint | None, last: int, device: Device,
    variant: Variant, left_out: Collection[int], tell: Callable[[Replayed], None],
) -> None:  # fmt: skip
    """Train from the checkpoint up to the step `last`, without the updates that were left out; each step is told."""
    at, data, fitting = _loaded(layout, plan, attempt, start, device, resets=variant.resets_moments)
    config = plan.settled.train
    while at.step < last:
        following = data.following(at.windows, config.batch_size)
        batch = data.read(following.starts)
        at.optimizer.rate = variant.rate * config.learning_rate_at(at.step)
        part = fitting.compute(partial(compute_gradients, at, batch, config, device, ALONE))
        at.optimizer.clip(part.loss)
        if at.step + 1 not in left_out:
            at.optimizer.step()
        at.advance(config, following.end)
        tell(Replayed(step=at.step, loss=part.loss.item()))


def _loaded(
    layout: Layout, plan: Plan, attempt: Attempt | None, start: Checkpoint | None, device: Device, *, resets: bool
) -> tuple[state.TrainingState, Batches, Fitting]:
    at = state.load(layout, plan, start, device)
    if resets:
        at.optimizer.state.clear()
    windows = plan.settled.train.windows_at_once
    return at, Batches.of_plan(layout, plan, attempt), Fitting(windows, at, device, lambda line: None)
