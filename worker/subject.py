"""What a tracker follows, and the curves that it shows of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gptjobs.checkpoint import Attempt
from gptjobs.config import Plan
from gptjobs.history import Line
from gptjobs.job import JobSpec
from gptjobs.layout import Layout

CURVES: Mapping[str, str] = {
    "train_loss": "train/loss",
    "val_loss": "val/loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "tokens_per_s": "tokens_per_s",
    "mfu": "mfu",
    "tokens": "tokens",
}
"""a line's fields, and what the curves are called"""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a tracker follows: an attempt of a job."""

    layout: Layout
    spec: JobSpec
    plan: Plan
    attempt: Attempt
    group: str
    """the sweep's name, else the job's"""
    branch: int | None
    """token of the newest attempt that went back over steps which an earlier one had reported; None where none did"""

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Every settled value, and where the job comes from: the same in every attempt."""
        settled, spec = self.plan.settled, self.spec
        origin = {"job": spec.id, "kind": spec.kind, "parent": self.plan.parent, "sweep": spec.sweep}
        return {**asdict(settled.model), **asdict(settled.train), **origin}


def values(line: Line) -> dict[str, float]:
    """A point on each curve that the line has one for."""
    return {curve: line[name] for name, curve in CURVES.items() if line.get(name) is not None}
