"""The training loop, one story from top to bottom."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gptjobs.checkpoint import Attempt, Checkpoint
from gptjobs.config import Plan, Settled, TrainConfig
from gptjobs.layout import Layout
from gptjobs.progress import (
    LOSS_DIGITS,
    MOST_GROUPS,
    Evaluated,
    Finished,
    Line,
    Progress,
    Stage,
    StageBegan,
    TrainerOutcome,
    in_words,
)
from worker.child import Stop, log
from worker.trainer import arithmetic, state
from worker.trainer.batches import Batch, Batches
from worker.trainer.device import Device
from worker.trainer.guard import Guard, Looked
from worker.trainer.memory import Fitting
from worker.trainer.model import flops_per_token
from worker.trainer.ranks import ALONE, Ranks
from worker.trainer.recorder import Recorder, Step
from worker.trainer.saving import Saver
from worker.trainer.state import TrainingState

REPORT_AT_LEAST_EVERY_S = 10.0

Report = Callable[[Line], None]


class Gradients(NamedTuple):
    """This rank's part in an update. Its part in the mean loss, and the norm of the mean gradient of its first
    `micro_windows` windows, where that was asked for and they are not all: both still on the device."""

    loss: Tensor
    micro_norm: Tensor | None
    micro_windows: int | None


def train(
    layout: Layout, plan: Plan, attempt: Attempt, start: Checkpoint | None, device: Device,
    report: Report, stop: Stop, ranks: Ranks = ALONE,
) -> Finished:  # fmt: skip
    """Train from `start` to the plan's end, and say how it ended. No checkpoint is in flight after that. All ranks
    come to the same decisions, as these rest on what was added up or asked of all."""
    with Saver(layout, plan, attempt.token, report, ranks) as saver:
        return _train(layout, plan, attempt, start, device, report, stop, ranks, saver)


def _train(
    layout: Layout, plan: Plan, attempt: Attempt, start: Checkpoint | None, device: Device,
    report: Report, stop: Stop, ranks: Ranks, saver: Saver,
) -> Finished:  # fmt: skip
    settled, config = plan.settled, plan.settled.train
    report(StageBegan(stage="loading"))
    at = state.load(layout, plan, start, device)
    data = Batches.of_plan(layout, plan, attempt)
    ahead = data.following(at.windows, config.batch_size)
    fitting = Fitting(attempt.micro_batch or config.windows_at_once, at, device, report)

    def gradients(device: Device) -> Gradients:
        batch = data.read(ahead.starts[ranks.part(config.batch_size)])
        return fitting.compute(lambda windows: compute_gradients(at, batch, config, device, ranks, windows))

    device = arithmetic.settle(layout, plan, start, at, device, lambda device: gradients(device).loss, report, ranks)
    recorder = Recorder(layout, plan, attempt.token, at.optimizer.names, at.steps, writes=ranks.is_first)
    meter = Meter(plan, at, device, report, ranks)
    guard = Guard(
        layout, plan, attempt, at, data, recorder, partial(_look, at, data, config, device, ranks, fitting), report
    )

    def evaluate() -> None:
        with meter.pause("evaluating"):
            losses = fitting.compute(lambda windows: _evaluate(at, data, settled, device, stop, ranks, windows))
            _note_evaluation(at, settled, losses, report)

    def ended(outcome: TrainerOutcome, reason: str | None = None, hint: str | None = None) -> Finished:
        recorder.dump(reason or outcome)
        with meter.pause("saving"):
            saver.finish(at, saves=True)
        return Finished(outcome=outcome, step=at.step, reason=reason, hint=hint)

    def read() -> None:
        steps = recorder.read()
        meter.add(steps)
        guard.add(steps)

    def over(is_asked: bool) -> Finished | None:
        """How training ends here, if it does."""
        bad_end, early = guard.bad_end(saver), _stops_early(at, config, is_asked)
        return bad_end or (ended(*early) if early else None)

    evaluate()
    if end := over(False):
        return end
    first_step = at.step
    meter.restart()
    while at.step < settled.end_step:
        rate = config.learning_rate_at(at.step)
        at.optimizer.rate = rate
        part = gradients(device)
        ranks.add_up([*at.optimizer.gradients, part.loss])
        clipped = at.optimizer.clip(part.loss)
        recorder.add(at.step + 1, at.windows, ahead.end, rate, part.loss, clipped)
        if at.step == first_step:
            read()
            meter.line(rate, ends_interval=False)
        saver.before_update()
        at.optimizer.step()
        at.advance(config, ahead.end)
        ahead = data.following(at.windows, config.batch_size)

        asked, due = ranks.any(stop.requested, meter.is_due(at.step))
        stops = asked and at.step < settled.end_step
        evaluates, saves = settled.evaluates_at(at.step), settled.saves_at(at.step)
        is_told = stops or evaluates or saves or due
        if not (is_told or guard.looks_at(at.step)):
            continue
        read()
        if evaluates:
            evaluate()
        if is_told:
            meter.line(rate, part)
        if end := over(stops):
            return end
        if saves:
            with meter.pause("saving"):
                saver.begin(at)
    return ended("finished")


def _stops_early(at: TrainingState, config: TrainConfig, is_asked: bool) -> tuple[TrainerOutcome, str | None] | None:
    """Why training ends before its last step, or None."""
    patience = at.patience
    if at.is_evaluated and patience.best <= config.target_val_loss:
        return "target", f"validation loss {patience.best:.4f} reached the target"
    if at.is_evaluated and 0 < config.patience <= patience.waited:
        return "patience", f"no better validation loss than {patience.best:.4f}"
    return ("stopped", None) if is_asked else None


def compute_gradients(
    at: TrainingState, batch: Batch, config: TrainConfig, device: Device, ranks: Ranks, windows: int
) -> Gradients:
    """Compute this rank's part in the gradients of one update, added up over micro-batches of so many windows."""
    own = ranks.part(config.batch_size)
    tokens, targets = batch
    total = torch.zeros((), device=device.place)
    measures = ranks.size == 1 and windows < len(own) and (at.step + 1) % config.log_interval == 0
    micro_norm = None
    count = config.batch_size * config.block_size
    at.optimizer.zero_grad()
    for first in range(0, len(own), windows):
        rows = slice(first, first + windows)
        inputs = device.put(tokens[rows])
        places = range(own.start + first, own.start + first + len(inputs))
        dropout = at.model.dropout(config, at.step, places)
        with device.autocast():
            loss = at.model.loss(inputs, device.put(targets[rows]), dropout, count)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
        if measures and first == 0:
            micro_norm = at.optimizer.norm() * (config.batch_size / windows)
    return Gradients(total, micro_norm, windows if measures else None)


def _evaluate(
    at: TrainingState, data: Batches, settled: Settled, device: Device, stop: Stop, ranks: Ranks, windows: int
) -> Tensor | None:
    """The mean loss of each held-out window; None where it was left undone: when asked to stop, but not at the job's
    last step. Each rank reads its part of them; those that share a model all read all, as they can only compute
    together."""
    config = settled.train
    count = data.held_out_windows(config.eval_tokens, config.evaluated_at)
    losses = torch.zeros(count, device=device.place)
    places, may_end = (range(count), False) if config.shard else (ranks.part(count), at.step < settled.end_step)
    done = places.start
    for tokens, targets in data.held_out(places, config.evaluated_at, windows):
        if stop.requested and may_end:
            break
        with device.autocast():
            losses[done : done + len(tokens)] = at.model.losses(device.put(tokens), device.put(targets)).mean(1)
        done += len(tokens)
    if any(ranks.any(done < places.stop)):
        return None
    if not config.shard:
        ranks.add_up([losses])
    return losses.cpu().double()


def _look(
    at: TrainingState, data: Batches, config: TrainConfig, device: Device, ranks: Ranks, fitting: Fitting, seen: int
) -> Looked:
    """The loss of the batch after so many windows."""
    following = data.following(seen, config.batch_size)
    batch = data.read(following.starts[ranks.part(config.batch_size)])
    return Looked(loss_of_batch(at, batch, config, device, ranks, fitting), following.end)


def loss_of_batch(
    at: TrainingState, batch: Batch, config: TrainConfig, device: Device, ranks: Ranks, fitting: Fitting
) -> float:
    """The mean loss of a batch, of which this rank has a part; nothing is trained."""

    def compute(windows: int) -> Tensor:
        total = torch.zeros((), device=device.place)
        for first in range(0, len(batch[0]), windows):
            tokens, targets = (device.put(each[first : first + windows]) for each in batch)
            with device.autocast():
                total += at.model.losses(tokens, targets).mean(1).sum() / config.batch_size
        return total

    loss = fitting.compute(compute)
    ranks.add_up([loss])
    return loss.item()


def _note_evaluation(at: TrainingState, settled: Settled, losses: Tensor | None, report: Report) -> None:
    """Set the state's validation loss, the mean over all held-out windows, if none was left out."""
    if losses is None:
        return
    val_loss, context = losses.mean().item(), settled.train.evaluated_at
    tokens = len(losses) * context
    at.losses = replace(at.losses, val_loss=val_loss, eval_step=at.step, eval_context=context, eval_tokens=tokens)
    if settled.evaluates_at(at.step):
        at.patience.note(val_loss, at.step)
    groups = [round(each.mean().item(), LOSS_DIGITS) for each in losses.tensor_split(min(len(losses), MOST_GROUPS))]
    report(Evaluated(step=at.step, eval_context=context, eval_tokens=tokens, losses=groups))


class Meter:
    """Tells when a line of progress is due, and makes it."""

    def __init__(self, plan: Plan, at: TrainingState, device: Device, report: Report, ranks: Ranks) -> None:
        self._config, self._end, self._at, self._report = (
            plan.settled.train,
            plan.settled.end_step,
            at,
            report,
        )
        self._flops = flops_per_token(plan.settled.model, plan.settled.train.block_size)
        self._peak = device.peak
        self._ranks = ranks
        self.restart()

    def restart(self) -> None:
        """Begin a new mean."""
        self._loss, self._finite, self._count, self._norm = 0.0, 0, 0, math.nan
        self._since = self._last_line = time.monotonic()

    def add(self, steps: list[Step]) -> None:
        losses = [each.loss for each in steps if each.is_finite]
        self._loss += math.fsum(losses)
        self._finite += len(losses)
        self._count += len(steps)
        self._norm = steps[-1].grad_norm if steps else self._norm

    @contextmanager
    def pause(self, stage: Stage) -> Iterator[None]:
        """Time that does not count as training."""
        began = time.monotonic()
        self._report(StageBegan(stage=stage))
        yield
        self._report(StageBegan(stage="training"))
        self._since += time.monotonic() - began

    def is_due(self, step: int) -> bool:
        return step % self._config.log_interval == 0 or time.monotonic() - self._last_line >= REPORT_AT_LEAST_EVERY_S

    def line(self, rate: float, part: Gradients | None = None, *, ends_interval: bool = True) -> None:
        """Report the mean of the finite losses since the interval began. A line between two intervals, for a slow
        device's sake, does not end the mean, so the lines of intervals do not depend on the clock."""
        at, count = self._at, self._count
        loss = self._loss / self._finite if self._finite else math.nan
        seconds = time.monotonic() - self._since
        speed = count * self._config.batch_size * self._config.block_size / seconds
        left = (self._end - at.step) * seconds / count
        at.losses = replace(at.losses, train_loss=loss if self._finite else None)
        line = Progress(
            step=at.step,
            end_step=self._end,
            tokens=at.tokens,
            train_loss=loss,
            val_loss=at.losses.val_loss if at.is_evaluated else None,
            eval_context=self._config.evaluated_at if at.is_evaluated else None,
            learning_rate=rate,
            grad_norm=self._norm,
            micro_norm=part.micro_norm.item() if part and part.micro_norm is not None else None,
            micro_windows=part.micro_windows if part else None,
            tokens_per_s=speed,
            eta_s=left,
            mfu=None if self._peak is None else speed * self._flops / self._peak,
        )
        self._report(line)
        if self._ranks.is_first:
            log(in_words(line))
        self._last_line = time.monotonic()
        if ends_interval and at.step % self._config.log_interval == 0:
            self.restart()
