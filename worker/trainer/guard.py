"""The guard against spikes: looks at the loss of each step, once in a while, as they stay on the device until then."""

from collections.abc import Callable

import torch
from torch import Tensor

from gptjobs import checkpoint
from gptjobs.config import Plan
from gptjobs.diagnosis import Detector, Spike
from gptjobs.job import Cause
from gptjobs.layout import Layout
from gptjobs.progress import SPIKE, Alert, Finished, Line, StageBegan
from worker.child import log
from worker.trainer.saving import Saver
from worker.trainer.state import TrainingState

WARN = "warn"


class Guard:
    """`on_spike` of the config says what becomes of a job in which it sees one."""

    def __init__(self, layout: Layout, plan: Plan, at: TrainingState, report: Callable[[Line], None]) -> None:
        self._layout, self._plan, self._at, self._report = layout, plan, at, report
        self._unseen: list[tuple[int, Tensor]] = []

    def add(self, loss: Tensor) -> None:
        """The loss of the update that was just made; nothing waits for it here."""
        self._unseen.append((self._at.step, loss))

    def bad_end(self, is_finite: bool, rate: float, saver: Saver) -> Finished | None:
        """How training ends by what the losses since the last look show, if so: `is_finite` says whether their sum
        is. No checkpoint is written then."""
        if not is_finite:
            self._drop(saver)
            reason = f"loss or gradient is not finite at step {self._at.step}, learning rate {rate:.3g}"
            return Finished(outcome="diverged", step=self._at.step, reason=reason, hint=self._hint("best"))
        spike = self._look()
        if spike is None or self._plan.settled.train.on_spike == WARN:
            return None
        try:
            self._drop(saver)
        finally:
            self._put_away(spike)
        return Finished(
            outcome="failed", step=self._at.step, reason=str(spike), hint=self._hint("last"), cause=Cause.SPIKE.value
        )

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
        """A spike that the steps since the last look show, which is told. From there on another level counts."""
        if not self._unseen:
            return None
        losses = torch.stack([loss for _, loss in self._unseen]).tolist()
        steps = [step for step, _ in self._unseen]
        self._unseen.clear()
        found = [self._at.detector.add(step, loss) for step, loss in zip(steps, losses, strict=True)]
        spike = next(filter(None, found), None)
        if spike is not None:
            self._at.detector = Detector()
            # from the update before: it may be what broke the weights
            updates = self._at.step - spike.since + 2
            windows = [max(0, self._at.windows - updates * self._plan.settled.train.batch_size), self._at.windows]
            self._report(Alert(name=SPIKE, step=spike.step, since=spike.since, reason=str(spike), windows=windows))
            log(f"spike: {spike}")
        return spike

    def _hint(self, which: str) -> str:
        """Of a job that is not finite the best checkpoint, as the newest may have been written just before."""
        smaller = f"--learning-rate {self._plan.settled.train.learning_rate / 10:.3g}"
        if self._at.newest is None:
            return f"submit it again with a smaller one: {smaller}"
        return f"gptjobs submit resume --from {self._plan.job}@{which} {smaller}"
