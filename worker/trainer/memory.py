"""When memory runs out: how torch says so, and fewer windows on the device at once.

An update is still made of as many windows, the same ones, whose gradients add up over more parts.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from gptjobs.config import halved
from gptjobs.errors import OutOfMemory
from gptjobs.progress import Line, MicroBatch
from worker.child import log
from worker.trainer.device import Device
from worker.trainer.state import TrainingState

Value = TypeVar("Value")

_WORDS = (
    # where torch raises a plain RuntimeError: its CPU allocator, Metal's, CUDA's own and its libraries'
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_KEPT = {
    -1: (1 << 31) - 1,  # M_TRIM_THRESHOLD: bytes at the heap's end before they are given back
    -2: 1 << 26,  # M_TOP_PAD: bytes that the heap grows by
    -3: 1 << 30,  # M_MMAP_THRESHOLD: bytes from which a block is the system's, not the heap's
}
_SAID = (RuntimeError, MemoryError)


def is_out_of_memory(error: Exception) -> bool:
    """Whether this is how torch, or Python, says so."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(each in str(error) for each in _WORDS)


class Fitting:
    """Computes with as many `windows` at once as fit; how many that are is only found out by trying."""

    def __init__(self, windows: int, at: TrainingState, device: Device, report: Callable[[Line], None]) -> None:
        self.windows = windows
        self._smallest = windows if at.model.is_split else 1
        self._at, self._device, self._report = at, device, report

    def compute(self, at_once: Callable[[int], Value]) -> Value:
        """What `at_once` returns; called again with half the windows at once each time that memory runs out."""
        while True:
            try:
                return at_once(self.windows)
            except _SAID as error:
                if self.windows == self._smallest or not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            # only here is the error gone, and with it what the failed computation held
            self._halve(reason)

    def _halve(self, reason: str) -> None:
        self._at.optimizer.zero_grad()
        self._device.empty_cache()
        before, self.windows = self.windows, halved(self.windows)
        kind = self._device.place.type
        line = MicroBatch(step=self._at.step, device=kind, before=before, windows=self.windows, reason=reason)
        self._report(line)
        log(f"out of memory on {kind} at step {line.step}: from {before} windows at once to {self.windows}")


def keep_freed() -> None:
    """Let glibc's allocator keep what is freed for the next step. Otherwise it gives large blocks back to the system at
    once, which hands them out again page by page: a fifth of a step. Other allocators do this by themselves."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _KEPT.items():
            mallopt(option, value)


@contextmanager
def told(device: str) -> Iterator[None]:
    """Raise OutOfMemory for what torch raises where memory runs out."""
    try:
        yield
    except _SAID as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory on {device}: {first_line(error)}", hint=OutOfMemory.remedy) from error


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
