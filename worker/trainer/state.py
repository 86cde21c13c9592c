"""The state of training, and how it is loaded from a checkpoint; saving.py writes them.

The manifest is the truth about everything but tensors.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gptjobs.checkpoint import Checkpoint, Losses
from gptjobs.config import KEEP, Plan, TrainConfig
from gptjobs.diagnosis import Detector
from gptjobs.errors import Refused
from gptjobs.foreign import HEAD, POSITIONS, TOKENS
from gptjobs.layout import Layout
from worker.trainer import optim, shards, stored
from worker.trainer.device import Device
from worker.trainer.model import GPT, INIT_STD
from worker.trainer.recorder import Step


@dataclass
class Patience:
    """The best validation loss of the job so far, and the evaluations since without a better one."""

    best: float = math.inf
    waited: int = 0
    noted_step: int = -1

    def note(self, val_loss: float, step: int) -> None:
        """An attempt evaluates anew where the one before it ended: that counts once."""
        if step == self.noted_step:
            return
        self.noted_step = step
        self.best, self.waited = (val_loss, 0) if val_loss < self.best else (self.best, self.waited + 1)


@dataclass
class TrainingState:
    """All that changes from step to step."""

    model: GPT
    optimizer: optim.AdamW
    step: int = 0
    tokens: int = 0
    windows: int = 0
    """seen in the order of this job's block size"""
    patience: Patience = field(default_factory=Patience)
    losses: Losses = field(default_factory=Losses)
    detector: Detector = field(default_factory=Detector)
    """of spikes"""
    steps: tuple[Step, ...] = ()
    """the newest, as far as they were read from the device"""
    arithmetic: str | None = None
    """in words, see arithmetic.py"""
    newest: str | None = None
    """the checkpoint that this state was loaded from or last written to, relative to the root"""
    written_step: int | None = None

    @property
    def is_evaluated(self) -> bool:
        """Whether the validation loss is that of this very step."""
        return self.losses.eval_step == self.step

    def advance(self, config: TrainConfig, windows: int) -> None:
        """One update was made, after which so many windows were seen."""
        self.step += 1
        self.windows = windows
        self.tokens += config.batch_size * config.block_size


def load(layout: Layout, plan: Plan, start: Checkpoint | None, device: Device) -> TrainingState:
    """The state at `start`, or new weights from the seed. A resume drops the moments of its parent where it was asked
    to, never its own. Raises Refused where the weights are not finite."""
    train = plan.settled.train
    torch.manual_seed(train.seed)
    model = GPT(plan.settled.model)
    model.recompute = train.recompute
    saved: dict[str, Any] = {}
    if start is not None:
        saved = stored.read(layout.path(start.name), start.manifest)
        _load_weights(model, saved["model"], start.name)
    if train.shard:
        shards.split(model, device)
    model.to(device.place)
    state = TrainingState(model=model, optimizer=optim.adamw(model, train, device))
    if start is None:
        return state
    manifest = start.manifest
    is_own = manifest.job == plan.job
    state.step, state.tokens, state.newest = manifest.step, manifest.tokens, start.name
    state.windows = manifest.windows_behind(plan)
    if is_own or train.optimizer == KEEP:
        optim.restore_moments(model, state.optimizer, saved["optimizer"])
    if is_own:
        state.patience = Patience(**saved["patience"])
        if "detector" in saved:  # a file from before there was one has none
            state.detector = Detector.from_dict(saved["detector"])
        state.steps = tuple(Step(**{**each, "norms": tuple(each["norms"])}) for each in saved.get("steps", ()))
        state.losses, state.written_step = manifest.losses, manifest.step
    return state


def load_model(layout: Layout, found: Checkpoint, device: Device) -> GPT:
    """A checkpoint's model, to compute with and not to train. Raises Refused where its weights are not finite."""
    model = GPT(found.manifest.settled.model)
    _load_weights(model, stored.read(layout.path(found.name), found.manifest)["model"], found.name)
    return model.to(device.place).eval()


def _load_weights(model: GPT, saved: dict[str, Tensor], name: str) -> None:
    poisoned = [each for each, tensor in saved.items() if not torch.isfinite(tensor).all()]
    if poisoned:
        raise Refused(f"the checkpoint {name} is poisoned: {poisoned[0]} has values that are not finite")
    table = saved[POSITIONS]
    missing = model.config.n_positions - table.shape[0]
    if missing > 0:
        rows = torch.empty(missing, table.shape[1]).normal_(std=INIT_STD)
        saved = {**saved, POSITIONS: torch.cat([table, rows])}
    if model.config.tied:
        saved = {**saved, HEAD: saved[TOKENS]}
    model.load_state_dict(saved)
