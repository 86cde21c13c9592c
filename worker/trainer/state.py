"""What a checkpoint carries: loaded into a model and its optimizer, and written whole or not at all.

The manifest is the truth about everything but tensors.
"""

import hashlib
import math
import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gptjobs
from gptjobs import durable, storage
from gptjobs.checkpoint import Checkpoint, Cursor, Losses, Manifest, manifest_path
from gptjobs.config import KEEP, Plan, TrainConfig
from gptjobs.errors import Refused
from gptjobs.foreign import HEAD, POSITIONS, TOKENS
from gptjobs.layout import Layout, checkpoint_name
from gptjobs.progress import CheckpointWritten
from worker.trainer import optim, shards, stored
from worker.trainer.device import Device
from worker.trainer.model import GPT, INIT_STD


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
    optimizer: torch.optim.AdamW
    step: int = 0
    tokens: int = 0
    windows: int = 0
    """seen in the order of this job's block size"""
    patience: Patience = field(default_factory=Patience)
    losses: Losses = field(default_factory=Losses)
    newest: str | None = None
    """the checkpoint that this state was loaded from or last written to, relative to the root"""
    written_step: int | None = None

    @property
    def is_evaluated(self) -> bool:
        """Whether the validation loss is that of this very step."""
        return self.losses.eval_step == self.step

    def advance(self, config: TrainConfig) -> None:
        """One update was made."""
        self.step += 1
        self.windows += config.batch_size
        self.tokens += config.batch_size * config.block_size


def load(layout: Layout, plan: Plan, start: Checkpoint | None, device: Device) -> TrainingState:
    """The state at `start`, or new weights from the seed. A resume drops the moments of its parent where it was asked
    to, never its own. Raises Refused where the weights are not finite."""
    train = plan.settled.train
    torch.manual_seed(train.seed)
    model = GPT(plan.settled.model)
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
        state.losses, state.written_step = manifest.losses, manifest.step
    return state


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


def save(layout: Layout, plan: Plan, token: int, state: TrainingState) -> CheckpointWritten:
    """Commit a checkpoint: the file, then its manifest, each durable before it has its name. Raises NoSpace or
    StorageAway where the storage does not take it; what was there before stays as it is."""
    folder = layout.job_checkpoints(plan.job)
    try:
        storage.check(layout)
        durable.make_folder(folder)
        path, size, sha256 = _write_tensors(folder, plan, state)
        manifest = _manifest(plan, token, state, size, sha256)
        _write_manifest(path, manifest)
    except OSError as error:
        what = f"the checkpoint of step {state.step} could not be written"
        hint = f"free space in {folder}; it goes on from {state.newest or 'the start'}"
        raise storage.told(error, what, hint) from error
    state.newest, state.written_step = layout.name_of_checkpoint(plan.job, path.name), state.step
    return CheckpointWritten(
        name=path.name, step=state.step, tokens=state.tokens, size=size, val_loss=manifest.losses.val_loss
    )


def tensors(state: TrainingState) -> dict[str, Any]:
    """Of a checkpoint. Where the model is split all ranks gather them, at once, and only the first one gets them."""
    return {
        # state_dict() also has each rank keep only its part again, whose moments are asked for then
        "model": {
            name: shards.on_first(each)
            for name, each in state.model.state_dict().items()
            if name != HEAD or not state.model.config.tied
        },
        "optimizer": optim.moments(state.model, state.optimizer),
    }


def gather(state: TrainingState) -> None:
    """Do a rank's part in the checkpoint that the first one writes."""
    if state.model.is_split:
        tensors(state)
    state.written_step = state.step


def _write_tensors(folder: Path, plan: Plan, state: TrainingState) -> tuple[Path, int, str]:
    """Write the `.pt` under a name that no file has; the timestamp moves on where one has it."""
    content = {
        **tensors(state),
        "patience": asdict(state.patience),
        "step": state.step,
        "train_loss": state.losses.train_loss,
        "val_loss": state.losses.val_loss,
        "config": plan.settled.to_dict(),
    }
    beside = durable.temporary(folder / "checkpoint.pt")
    try:
        with beside.open("xb", buffering=0) as file:
            hashed = _Hashed(file)
            try:
                torch.save(content, hashed)  # type: ignore[arg-type]  # only write is called
            except RuntimeError:
                if hashed.error is not None:  # torch closes its zip all the same, and says only that it could not
                    raise hashed.error from None
                raise
            os.fsync(file.fileno())
        now = time.time()
        while True:
            path = folder / checkpoint_name(plan.data_name, state.step, now)
            now += 1.0
            if manifest_path(path).exists():
                continue
            with suppress(FileExistsError):
                durable.place(beside, path)
                return path, hashed.size, hashed.sha256.hexdigest()
    finally:
        beside.unlink(missing_ok=True)


def _write_manifest(path: Path, manifest: Manifest) -> None:
    """Commit the file; one that cannot be committed only takes space."""
    try:
        durable.create(manifest_path(path), durable.to_json(manifest.to_dict()))
    except OSError:
        with suppress(OSError):
            if not manifest_path(path).exists():
                path.unlink()
        raise


class _Hashed:
    """Hashes what is written on its way to the file, so that nothing is read again."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None
        """of the first write that failed"""

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        try:
            while written < len(view):
                written += self._file.write(view[written:])
        except OSError as error:
            self.error = self.error or error
            raise
        self.sha256.update(view)
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        pass


def _manifest(plan: Plan, token: int, state: TrainingState, size: int, sha256: str) -> Manifest:
    return Manifest(
        job=plan.job,
        token=token,
        step=state.step,
        tokens=state.tokens,
        losses=state.losses if state.is_evaluated else Losses(train_loss=state.losses.train_loss),
        cursor=Cursor(block_size=plan.settled.train.block_size, windows=state.windows),
        settled=plan.settled,
        data_name=plan.data_name,
        data_digest=plan.data_digest,
        parent=state.newest,
        size=size,
        sha256=sha256,
        written_at=time.time(),
        versions={
            "gptjobs": gptjobs.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )
