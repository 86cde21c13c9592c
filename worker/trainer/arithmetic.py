"""The arithmetic of a job on a kind of device: what its numbers depend on, beyond its config, to the bit.

Threads, precision and compilation are settled before the first step, by a short probe where they are left to `auto`
and the job is long enough to pay for one, and written down: later attempts on that kind of device compute alike. A
host that cannot, or a checkpoint that was computed otherwise, is an event that says from which step on the job is no
longer bit-equal to one that was never stopped.
"""

import importlib.util
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from gptjobs import durable
from gptjobs.checkpoint import Checkpoint
from gptjobs.config import Plan, known
from gptjobs.layout import Layout
from gptjobs.progress import ArithmeticSettled, Line, StageBegan
from worker.child import log
from worker.trainer.device import Device
from worker.trainer.memory import first_line
from worker.trainer.model import flops_per_token
from worker.trainer.ranks import Ranks
from worker.trainer.state import TrainingState

Gradients = Callable[[Device], Tensor]
"""computes this rank's part of those of an update; returns its part of the loss, still on the device"""

SCHEMA = 1
PROBED_FROM_S = 600.0
"""of training left, from which a probe can pay: compilation takes up to a minute and gains up to a third"""
_ROUGH_SPEED = {"cuda": 1e14, "mps": 2e12}
_ROUGH_SPEED_OF_THREAD = 5e10
"""operations a second, to tell a short job from a long one"""
_ROUNDS = 3
_GAINS = 0.97
"""of the seconds before: what a change must come to for it to count as a gain in a noisy probe"""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """`threads` compute together, in `precision`, by compiled blocks or not, on a `device` of that kind; `exact` says
    that only algorithms were allowed which give the same bits twice."""

    device: str
    threads: int
    precision: str
    compiled: bool
    exact: bool
    capability: str
    """instructions of the CPU that torch uses"""
    torch: str
    """its version"""

    def __str__(self) -> str:
        threads = f"{self.threads} {'thread' if self.threads == 1 else 'threads'}"
        how = "compiled" if self.compiled else "not compiled"
        exact = ", exact" * self.exact
        return f"{self.device}, {threads} ({self.capability}), {self.precision}, {how}{exact}, torch {self.torch}"


def settle(
    layout: Layout, plan: Plan, start: Checkpoint | None, at: TrainingState, device: Device,
    gradients: Gradients, report: Callable[[Line], None], ranks: Ranks,
) -> Device:  # fmt: skip
    """Let the state's model, and torch, compute as the job does on this kind of device; returns the device with its
    precision. `gradients` are computed, and not used, where a probe has to time them."""
    if plan.settled.train.exact:
        os.putenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it, in C, before its first product
        torch.use_deterministic_algorithms(True)
        torch.backends.cuda.matmul.allow_tf32 = False
    path = layout.arithmetic_file(plan.job, device.place.type)
    if ranks.is_first and not path.exists():
        made = _decided(plan, at, device, gradients, report)
        with suppress(FileExistsError):
            durable.create(path, durable.to_json({"schema": SCHEMA, **asdict(made)}))
    ranks.any(False)  # the others wait until it is there
    kept = Arithmetic(**known(Arithmetic.__dataclass_fields__, json.loads(path.read_bytes())))
    here = replace(kept, threads=_threads(kept), capability=_capability(), torch=torch.__version__)
    at.arithmetic = str(here)
    at.model.compile_blocks(here.compiled)
    otherwise = {str(kept)} | ({start.manifest.arithmetic} if start and start.manifest.job == plan.job else set())
    before = next((each for each in sorted(filter(None, otherwise)) if each != str(here)), None)
    report(ArithmeticSettled(step=at.step, words=str(here), before=before))
    if ranks.is_first:
        log(f"arithmetic: {here}")
        if before is not None:
            log(f"before it was {before}: from step {at.step} on, this job is not bit-equal to one that never stopped")
    return replace(device, precision=here.precision)


def _threads(kept: Arithmetic) -> int:
    """Have torch compute with as many threads as before, or with what there is."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if kept.threads != torch.get_num_threads():
        torch.set_num_threads(min(kept.threads, available))
    return torch.get_num_threads()


def _decided(
    plan: Plan, at: TrainingState, device: Device, gradients: Gradients,
    report: Callable[[Line], None],
) -> Arithmetic:  # fmt: skip
    """What the config says, and where it leaves it open, what is faster here."""
    train = plan.settled.train
    precision, compiled = device.precision, train.compile == "on"
    may_halve = train.precision == "auto" and _computes_in_bfloat16(device)
    may_compile = train.compile == "auto" and _can_compile(device)
    is_open = (may_halve or may_compile) and not (train.exact or at.model.is_split)
    if is_open and _seconds_left(plan, at, device) >= PROBED_FROM_S:
        report(StageBegan(stage="probing"))
        began = time.monotonic()
        _seconds(gradients, device)  # the first one also warms up
        taken = _best(gradients, device)
        if may_halve:
            halved = _best(gradients, replace(device, precision="bfloat16"))
            log(f"probe: an update takes {taken:.3f} s in float32, {halved:.3f} s in bfloat16")
            if halved < _GAINS * taken:
                precision, taken = "bfloat16", halved
        if may_compile:
            compiled = _pays(at, replace(device, precision=precision), gradients, taken)
        log(f"probe: {time.monotonic() - began:.0f} s in all")
    return Arithmetic(
        device=device.place.type,
        threads=torch.get_num_threads(),
        precision=precision,
        compiled=compiled,
        exact=train.exact,
        capability=_capability(),
        torch=torch.__version__,
    )


def _capability() -> str:
    return str(torch.backends.cpu.get_cpu_capability())


def _seconds_left(plan: Plan, at: TrainingState, device: Device) -> float:
    """Of training, roughly."""
    settled = plan.settled
    tokens = (settled.end_step - at.step) * settled.train.batch_size * settled.train.block_size
    speed = _ROUGH_SPEED.get(device.place.type) or _ROUGH_SPEED_OF_THREAD * torch.get_num_threads()
    return tokens * flops_per_token(settled.model, settled.train.block_size) / speed


def _seconds(gradients: Gradients, device: Device) -> float:
    began = time.monotonic()
    gradients(device).item()
    return time.monotonic() - began


def _best(gradients: Gradients, device: Device) -> float:
    return min(_seconds(gradients, device) for _ in range(_ROUNDS))


def _pays(at: TrainingState, device: Device, gradients: Gradients, taken: float) -> bool:
    """Whether compiled blocks are faster; compiling them took what it took, and later attempts find it in a cache."""
    at.model.compile_blocks(True)
    try:
        compiling = _seconds(gradients, device)
        compiled = _best(gradients, device)
    except RuntimeError as error:  # of torch's compiler, or of the C++ compiler it calls
        log(f"probe: compilation failed here: {first_line(error)}")
        compiled, compiling = math.inf, 0.0
    finally:
        at.model.compile_blocks(False)
    log(f"probe: compiled in {compiling:.0f} s, an update takes {compiled:.3f} s instead of {taken:.3f} s")
    return compiled < _GAINS * taken


def _can_compile(device: Device) -> bool:
    """Whether torch's compiler finds what it needs: a C++ compiler for CPUs, Triton for CUDA."""
    if device.place.type == "cpu":
        return any(shutil.which(each) for each in ("g++", "clang++", "c++"))
    return device.place.type == "cuda" and importlib.util.find_spec("triton") is not None


def _computes_in_bfloat16(device: Device) -> bool:
    """Whether a CPU has instructions for products of bfloat16; whether they gain is for the probe to say."""
    has_products = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.place.type == "cpu" and bool(has_products)
