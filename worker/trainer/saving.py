"""Checkpoints that do not stop training: copied while the next gradients are computed, then written beside it.

Weights and moments change in the optimizer's step alone. So a thread copies them, and right before the next step the
loop waits for that copy, nothing else. The thread then writes the file, hashes it on the way and commits it, with what
training leaves of the processors.
"""

import platform
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gptjobs
from gptjobs.checkpoint import Cursor, Losses, Manifest
from gptjobs.config import Plan
from gptjobs.errors import GptjobsError
from gptjobs.foreign import HEAD
from gptjobs.layout import Layout
from gptjobs.progress import CHECKPOINT_FAILED, Alert, CheckpointWritten, Line
from worker.child import log
from worker.trainer import optim, shards
from worker.trainer.commit import GivenUp, commit
from worker.trainer.ranks import ALONE, Ranks
from worker.trainer.recorder import STEPS_IN_CHECKPOINT
from worker.trainer.state import TrainingState

PATIENCE_S = 30.0
"""of the loop with a checkpoint that it waits for"""


@dataclass(frozen=True)
class _InFlight:
    """A checkpoint that is being copied, then written."""

    at: TrainingState
    step: int
    copying: "Future[torch.cuda.Event | None]"
    writing: Future[CheckpointWritten]
    given_up: threading.Event
    write_here: Callable[[], CheckpointWritten]

    def result(self) -> CheckpointWritten:
        """Wait until it is committed. Where other programs leave its thread no processor, this one writes it."""
        try:
            return self.writing.result(PATIENCE_S)
        except TimeoutError:
            self.given_up.set()
        try:
            return self.writing.result()
        except GivenUp:
            return self.write_here()


class Saver:
    """Writes an attempt's checkpoints, one at a time. Left with one in flight, it waits for it. Of several ranks the
    first writes, the others have only their parts of a split model to give."""

    def __init__(
        self, layout: Layout, plan: Plan, token: int, report: Callable[[Line], None], ranks: Ranks = ALONE
    ) -> None:
        self._layout, self._plan, self._token, self._report, self._ranks = layout, plan, token, report, ranks
        self._kept = _Kept()
        self._in_flight: _InFlight | None = None
        self._stall_s = 0.0
        """for which the loop has waited for the one in flight, or the newest"""
        self._is_last_chance = False
        """whether the next one that cannot be written ends the attempt"""

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(GptjobsError):  # training has ended in an error of its own
            self._settle()

    def begin(self, at: TrainingState) -> None:
        """Begin to save the state. Raises where the one before could not be written, nor the one before that."""
        self._settle()
        with self._stalling():
            self._start(at, in_background=True)

    def before_update(self) -> None:
        """Wait, right before the weights change, until they are copied; tell of what was committed meanwhile."""
        if self._in_flight is None:
            return
        with self._stalling():
            copied = self._in_flight.copying.result()
        if copied is not None:
            copied.wait()
        if self._in_flight.writing.done():
            self._settle()

    def finish(self, at: TrainingState, *, saves: bool) -> None:
        """Wait until nothing is in flight, and with `saves` until the state as it is now is committed. Raises NoSpace
        or StorageAway where it cannot be."""
        self._settle()
        (is_due,) = self._ranks.any(self._ranks.is_first and saves and at.written_step != at.step)
        if is_due:
            self._is_last_chance = True
            with self._stalling():
                self._start(at, in_background=False)
            self._settle()

    @contextmanager
    def _stalling(self) -> Iterator[None]:
        """What the loop waits for the one in flight, or for what begins it."""
        began = time.monotonic()
        yield
        self._stall_s += time.monotonic() - began

    def _start(self, at: TrainingState, *, in_background: bool) -> None:
        """One thread copies, then writes. It is a new one each time, as one that gave way cannot take that back."""
        self._stall_s = 0.0
        content, manifest = _content(self._plan, at), _manifest(self._plan, self._token, at)
        if not self._ranks.is_first:
            return
        if self._kept.size == 0:
            log(f"checkpoints: {sum(each.nbytes for each in _tensors(content)) / 1e9:.3g} GB are kept for snapshots")
        place = next(at.model.parameters()).device
        updated = torch.cuda.current_stream(place).record_event() if place.type == "cuda" else None
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        copying = thread.submit(self._kept.copy, _tensors(content), updated)
        given_up = threading.Event()
        write = partial(self._write, content, manifest, copying)
        writing = thread.submit(write, given_up if in_background else None)
        thread.shutdown(wait=False)
        self._in_flight = _InFlight(at, at.step, copying, writing, given_up, partial(write, None))
        if place.type == "mps":  # Metal is given work by one thread at a time
            copying.result()

    def _write(
        self, content: dict[str, Any], manifest: Manifest, copying: "Future[torch.cuda.Event | None]",
        given_up: threading.Event | None,
    ) -> CheckpointWritten:  # fmt: skip
        """Commit the copy."""
        copied = copying.result()
        if copied is not None:
            copied.synchronize()
        return commit(self._layout, self._plan.job, manifest, self._kept.in_place_of(content), given_up)

    def _settle(self) -> None:
        """Wait for the one in flight, and tell what became of it. Raises where two in a row could not be written."""
        if self._in_flight is None:
            return
        ended, self._in_flight = self._in_flight, None
        try:
            with self._stalling():
                written = ended.result()
        except GptjobsError as error:
            if self._is_last_chance:
                raise
            self._is_last_chance = True
            self._report(Alert(name=CHECKPOINT_FAILED, step=ended.step, reason=error.message))
            log(f"alert: {error.message}; tried again at the next interval")
            return
        self._is_last_chance = False
        ended.at.newest = self._layout.name_of_checkpoint(self._plan.job, written.name)
        ended.at.written_step = written.step
        self._report(replace(written, stall_s=round(self._stall_s, 6)))
        log(f"checkpoint {written.name}")


class _Kept:
    """Memory of this host for one copy of the state, taken at the first and kept for the next."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(each.nbytes for each in self._tensors)

    def copy(self, live: list[Tensor], updated: "torch.cuda.Event | None") -> "torch.cuda.Event | None":
        """Copy the tensors. CUDA does it by itself, after the event `updated`; the event that is returned is then."""
        if len(self._tensors) != len(live):
            self._tensors = [torch.empty_like(each, device="cpu", pin_memory=each.is_cuda) for each in live]
        if updated is None:
            for kept, each in zip(self._tensors, live, strict=True):
                _copy(kept, each)
            return None
        beside = torch.cuda.Stream(live[0].device)  # type: ignore[no-untyped-call]  # torch has no types for it
        beside.wait_event(updated)
        with torch.cuda.stream(beside):
            for kept, each in zip(self._tensors, live, strict=True):
                kept.copy_(each, non_blocking=True)
        copied: torch.cuda.Event = beside.record_event()
        return copied

    def in_place_of(self, content: dict[str, Any]) -> dict[str, Any]:
        """The content with the copies as its tensors."""
        copies = iter(self._tensors)
        model = {name: next(copies) for name in content["model"]}
        moments = {name: {each: next(copies) for each in own} for name, own in content["optimizer"].items()}
        return {**content, "model": model, "optimizer": moments}


def _copy(kept: Tensor, live: Tensor) -> None:
    """On a CPU by this thread alone, without Python's lock: torch's own copy would start a second team of threads."""
    if live.device.type == "cpu":
        np.copyto(_bytes(kept), _bytes(live))
    else:
        kept.copy_(live)


def _bytes(tensor: Tensor) -> Any:
    return tensor.flatten().view(torch.uint8).numpy()


def _tensors(content: dict[str, Any]) -> list[Tensor]:
    moments = (each for own in content["optimizer"].values() for each in own.values())
    return [*content["model"].values(), *moments]


def _content(plan: Plan, at: TrainingState) -> dict[str, Any]:
    """What the file holds, with the tensors that are trained. Where the model is split all ranks gather them, at once,
    and only the first one gets them."""
    is_tied = plan.settled.model.tied
    return {
        # state_dict() also has each rank keep only its part again, whose moments are asked for then
        "model": {
            name: shards.on_first(each) for name, each in at.model.state_dict().items() if name != HEAD or not is_tied
        },
        "optimizer": optim.moments(at.model, at.optimizer),
        "patience": asdict(at.patience),
        "detector": at.detector.to_dict(),
        "steps": [{**asdict(each), "norms": [*each.norms]} for each in at.steps[-STEPS_IN_CHECKPOINT:]],
        "step": at.step,
        "train_loss": at.losses.train_loss,
        "val_loss": at.losses.val_loss,
        "config": plan.settled.to_dict(),
    }


def _manifest(plan: Plan, token: int, at: TrainingState) -> Manifest:
    """All that is known before the file is there."""
    return Manifest(
        job=plan.job,
        token=token,
        step=at.step,
        tokens=at.tokens,
        losses=at.losses if at.is_evaluated else Losses(train_loss=at.losses.train_loss),
        cursor=Cursor(block_size=plan.settled.train.block_size, windows=at.windows),
        settled=plan.settled,
        data_name=plan.data_name,
        data_digest=plan.data_digest,
        parent=at.newest,
        size=0,
        sha256="",
        arithmetic=at.arithmetic,
        versions={
            "gptjobs": gptjobs.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )
