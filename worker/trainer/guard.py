"""The guard: looks at the losses and gradient norms of all steps, once in a while, as they stay on the device until
then. It notes outliers, and says what becomes of a job in which it sees a spike."""

import math
import shlex
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from gptjobs import checkpoint
from gptjobs.checkpoint import Attempt
from gptjobs.config import SKIP, WARN, Plan
from gptjobs.diagnosis import RECENT_STEPS, Detector, Spike
from gptjobs.job import Cause
from gptjobs.layout import Layout
from gptjobs.progress import FALL, NOT_FINITE, OUTLIER, SPIKE, Alert, Finished, Line, StageBegan
from worker.child import log
from worker.trainer.batches import Batches
from worker.trainer.recorder import Recorder, Step
from worker.trainer.saving import Saver
from worker.trainer.state import TrainingState

LOOK_STEPS = 25
"""at most, between looks"""
MOST_STARTS = 64
"""windows that are named in an alert"""
LOOKS_AHEAD = 1000
"""batches, in search of the end of text that repeats itself"""


class Looked(NamedTuple):
    """The mean loss of a batch, and the windows seen after it."""

    loss: float
    end: int


class Guard:
    """`on_spike` of the config says what becomes of a job in which it sees one. After it went back, outliers are left
    out also where `on_outlier` does not say so: what made the spike may go on behind the windows that it had seen."""

    def __init__(
        self, layout: Layout, plan: Plan, attempt: Attempt, at: TrainingState, data: Batches, recorder: Recorder,
        look: Callable[[int], Looked], report: Callable[[Line], None],
    ) -> None:  # fmt: skip
        """`look` computes the loss of the batch after so many windows, by the weights as they are."""
        self._layout, self._plan, self._at, self._data = layout, plan, at, data
        self._recorder, self._look_at, self._report = recorder, look, report
        self._unseen: list[Step] = []
        self._every = min(plan.settled.train.log_interval, LOOK_STEPS)
        self._leaves_out = plan.settled.train.on_outlier == SKIP or bool(attempt.skips)
        self._set_band()

    def add(self, steps: list[Step]) -> None:
        self._unseen += steps
        self._at.steps = tuple(self._recorder.steps)

    def looks_at(self, step: int) -> bool:
        """Steps at which it looks, whatever else is due: so it sees the same in a job that was stopped in between."""
        return step % self._every == 0

    def bad_end(self, saver: Saver) -> Finished | None:
        """How training ends by what the steps since the last look show, and this step's evaluation, if so. No
        checkpoint is written then."""
        spike = self._look()
        if self.looks_at(self._at.step):
            self._at.detector.limits = self._at.detector.band()
        self._set_band()
        if spike is None:
            return None
        on_spike = self._plan.settled.train.on_spike
        if on_spike == WARN and math.isfinite(spike.now):
            return None
        try:
            self._drop(saver)
        finally:
            self._put_away(spike)
        step, reason, hint = self._at.step, str(spike), self._hint(spike)
        if on_spike == WARN or not self._can_go_back():
            return Finished(outcome="diverged", step=step, reason=reason, hint=hint)
        return Finished(outcome="failed", step=step, reason=reason, hint=hint, cause=Cause.SPIKE.value)

    def _set_band(self) -> None:
        """Outside of which updates are left out."""
        self._at.optimizer.band = self._at.detector.limits if self._leaves_out else None

    def _can_go_back(self) -> bool:
        return bool(self._plan.parent or checkpoint.counting(self._layout, self._plan.job))

    def _put_away(self, spike: Spike) -> None:
        """The job's checkpoints since it began. The loss of a step is that of the weights before it."""
        for each in checkpoint.counting(self._layout, self._plan.job):
            if each.manifest.job == self._plan.job and each.manifest.step >= spike.since - 1:
                checkpoint.quarantine(self._layout, each, f"spike from step {spike.since} on")
                log(f"checkpoint {each.name} is in quarantine: it was written in a spike")

    def _drop(self, saver: Saver) -> None:
        self._report(StageBegan(stage="saving"))
        saver.finish(self._at, saves=False)

    def _look(self) -> Spike | None:
        """A spike that the steps since the last look show, which is told, as are outliers. From there on another level
        counts."""
        steps, self._unseen = self._unseen, []
        odd: list[Step] = []
        spike: Spike | None = None
        for step in steps:
            detector = self._at.detector
            band = detector.band()
            found = detector.add(step.step, step.loss, step.grad_norm, left_out=step.left_out)
            if found is not None:
                spike = spike or found
                self._at.detector = Detector()
                self._at.detector.limits = detector.limits
            elif step.left_out or not step.is_finite or (band and not band.holds(step.loss, step.grad_norm)):
                odd.append(step)
        spike = spike or self._not_finite_evaluation()
        self._tell_outliers([each for each in odd if spike is None or each.step < spike.since])
        return None if spike is None else self._tell(spike)

    def _not_finite_evaluation(self) -> Spike | None:
        """A validation loss that is no number: so are the weights."""
        step, val_loss = self._at.step, self._at.losses.val_loss
        if not self._at.is_evaluated or val_loss is None or math.isfinite(val_loss):
            return None
        return Spike(since=step, step=step, level=math.inf, now=math.inf)

    def _tell_outliers(self, odd: list[Step]) -> None:
        """Neighbours as one."""
        neighbours = groupby(enumerate(odd), key=lambda each: each[1].step - each[0])
        for steps in ([step for _, step in each] for _, each in neighbours):
            first, last = steps[0], steps[-1]
            highest = max(steps, key=lambda each: each.loss if each.is_finite else math.inf)
            what = f"loss {highest.loss:.4f}, gradient norm {highest.grad_norm:.3g}"
            where = f"step {first.step}" if first is last else f"steps {first.step} to {last.step}"
            left_out = "; the update was left out" if all(each.left_out for each in steps) else ""
            is_finite = all(each.is_finite for each in steps)
            starts = self._data.at(first.seen, min(last.end, first.seen + MOST_STARTS)).tolist()
            alert = Alert(
                name=OUTLIER if is_finite else NOT_FINITE, step=last.step, since=first.step,
                reason=f"outlier: {what} at {where}{left_out}", windows=[first.seen, last.end], starts=starts,
            )  # fmt: skip
            self._report(alert)
            log(alert.reason)
            if not is_finite:
                self._recorder.dump(alert.reason)

    def _tell(self, spike: Spike) -> Spike:
        """Returns it as it was told."""
        # from the update before: it may be what broke the weights
        steps = [each for each in self._recorder.steps if spike.since - 1 <= each.step <= spike.step]
        windows = [steps[0].seen, steps[-1].end] if steps else None
        if steps and math.isfinite(spike.now) and not spike.left_out:
            self._report(StageBegan(stage="evaluating"))
            fall = self._whole_fall(spike, steps[-1].end) if spike.is_fall else self._fall_before(spike)
            self._report(StageBegan(stage="training"))
            spike, windows = fall or (spike, windows)
        name = FALL if spike.is_fall else SPIKE
        self._report(Alert(name=name, step=spike.step, since=spike.since, reason=str(spike), windows=windows))
        log(f"{name}: {spike}")
        self._recorder.dump(str(spike))
        return spike

    def _whole_fall(self, spike: Spike, end: int) -> tuple[Spike, list[int]]:
        """Since when, and on which windows: those whose loss is low by the weights that have learned them by heart. The
        losses of the steps that learned them do not tell where that began. It had seen those up to `end`."""
        low = (spike.level + spike.now) / 2
        since, first = spike.step, end
        for step in reversed(self._recorder.steps):
            if step.step < spike.since and self._look_at(step.seen).loss > low:
                break
            since, first = step.step, step.seen
        for _ in range(LOOKS_AHEAD):
            looked = self._look_at(end)
            if looked.loss > low:
                break
            end = looked.end
        return replace(spike, since=since), [first, end]

    def _fall_before(self, spike: Spike) -> tuple[Spike, list[int]] | None:
        """Where the loss only came back from a stretch that is low by these weights still: that was odd, and fell too
        slowly to be seen as it came."""
        low = (spike.level + spike.now) / 2
        before = [each for each in self._recorder.steps if each.step < spike.since and each.is_finite]
        stretch: list[Step] = []
        while before and self._look_at(before[-1].seen).loss < low:
            stretch.append(before.pop())
        if len(stretch) < RECENT_STEPS or len(before) < RECENT_STEPS:
            return None
        level = statistics.median(each.loss for each in before[-RECENT_STEPS:])
        if level < low:
            return None
        first, last = stretch[-1], stretch[0]
        fall = Spike(since=first.step, step=spike.step, level=level, now=spike.level, is_fall=True)
        return fall, [first.seen, last.end]

    def _hint(self, spike: Spike) -> str:
        """What goes on from before it: of a job without numbers from the best checkpoint, as the newest may have been
        written just before."""
        smaller = f"--learning-rate {self._plan.settled.train.learning_rate / 10:.3g}"
        if checkpoint.counting(self._layout, self._plan.job):
            which = "last" if math.isfinite(spike.now) else "best"
            return f"gptjobs submit resume --from {self._plan.job}@{which} {smaller}"
        if self._plan.parent:
            return f"gptjobs submit resume --from {shlex.quote(self._plan.parent)} {smaller}"
        return f"submit it again with a smaller one: {smaller}"
