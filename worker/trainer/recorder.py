"""The flight recorder: what the newest steps were, kept in memory, and written down when
something went wrong, and at an attempt's end.

Everything stays on the device until a line of progress is due; one transfer then brings what is new.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from gptjobs import durable
from gptjobs.config import Plan
from gptjobs.layout import Layout
from worker.child import log
from worker.trainer.optim import Clipped

SCHEMA = 1
STEPS = 200
"""that are kept"""
STEPS_IN_CHECKPOINT = 100
"""of these: so far back a spike may have begun that is seen after a resume"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """An update: `step` is what it made; its batch are the windows after the first `seen` of the order, up to `end`.
    The loss is that of the weights before it."""

    step: int
    seen: int
    end: int
    learning_rate: float
    loss: float
    grad_norm: float
    norms: tuple[float, ...]
    """of the gradient, by the recorder's groups"""
    left_out: bool
    """whether the update was not applied"""

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Recorder:
    """The newest steps of an attempt, oldest first, as far as they were read from the device."""

    def __init__(
        self, layout: Layout, plan: Plan, token: int, parameters: Sequence[str], steps: Sequence[Step], *, writes: bool
    ) -> None:
        """`parameters` are the names of those whose gradients' norms each step has, `steps` those that a checkpoint
        kept; only one rank `writes`."""
        self._layout, self._plan, self._token, self._writes = layout, plan, token, writes
        names = [_group(name) for name in parameters]
        self.groups = list(dict.fromkeys(names))
        self._group_of = torch.tensor([self.groups.index(name) for name in names])
        self._unread: list[tuple[int, int, int, float]] = []
        self._numbers: list[list[Tensor]] = []
        self.steps = deque(steps, maxlen=STEPS)

    def add(self, step: int, seen: int, end: int, rate: float, loss: Tensor, clipped: Clipped) -> None:
        """An update. Nothing waits for the device here."""
        self._unread.append((step, seen, end, rate))
        self._numbers.append([loss, clipped.norm, clipped.left_out, clipped.norms])

    def read(self) -> list[Step]:
        """The steps since the last time, waiting for the device."""
        if not self._unread:
            return []
        scalars = torch.stack([torch.stack(each[:3]) for each in self._numbers]).tolist()
        squares = torch.stack([each[3] for each in self._numbers]).cpu().square()
        by_group = squares.new_zeros(len(squares), len(self.groups)).index_add_(1, self._group_of, squares)
        norms = by_group.sqrt().tolist()
        found = [
            Step(
                step=step, seen=seen, end=end, learning_rate=rate, loss=loss, grad_norm=norm, norms=tuple(of_group),
                left_out=bool(left_out),
            )
            for (step, seen, end, rate), (loss, norm, left_out), of_group in zip(
                self._unread, scalars, norms, strict=True
            )
        ]  # fmt: skip
        self._unread.clear()
        self._numbers.clear()
        self.steps.extend(found)
        return found

    def dump(self, why: str) -> None:
        """Write the newest steps down; a disk that cannot take them does not stop training."""
        if not self.steps or not self._writes:
            return
        newest, train = self.steps[-1].step, self._plan.settled.train
        record = {
            "schema": SCHEMA,
            "job": self._plan.job,
            "token": self._token,
            "why": why,
            "seed": train.seed,
            "block_size": train.block_size,
            "groups": self.groups,
            "steps": [durable.without_nan(asdict(each)) for each in self.steps],
        }
        path = self._layout.flight_file(self._plan.job, self._token, newest)
        try:
            durable.make_folder(path.parent)
            durable.write(path, durable.to_json(record))
        except OSError as error:
            log(f"the flight record was not written: {error}")


def _group(name: str) -> str:
    """The layer group of a parameter: embeddings, a block, or what comes after the last."""
    parts = name.split(".")
    if "h" in parts:
        return f"block {parts[parts.index('h') + 1]}"
    return "embeddings" if parts[-2] in ("wte", "wpe") else "head"
