"""`python -m bench.checkpoint`: what a checkpoint costs a training loop, against torch's own ways to write one.

GPT-2 of 124M with AdamW's moments, 1.5 GB, trains small batches; now and then a checkpoint is begun, each time in
another of these ways, in random order:

    gptjobs      worker.trainer.saving, as the trainer uses it
    torch.save   in the loop; not made durable there, so its time to durable has an fsync added after it
    async_save   torch.distributed.checkpoint's, which has a copy made in the loop and a thread write it

*blocked* is how long the loop stood still. *cost* is by how much longer the steps from the save on took, until it was
durable and at least WINDOW of them, than as many at the median of the WINDOW steps right before. Bounds for gptjobs:
blocked at most 10 ms, cost at most 40% of torch.save's.
"""

import argparse
import hashlib
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from gptjobs.config import Given, Plan, settle
from gptjobs.layout import Layout
from worker.trainer import optim, state
from worker.trainer.device import open_device
from worker.trainer.saving import Saver
from worker.trainer.state import TrainingState

WINDOW = 6
"""steps"""
BATCH, CONTEXT = 4, 128
ROUNDS = 6
GIGABYTE = 1e9


class Ours:
    name = "gptjobs"

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._layout = Layout(folder / "root")
        self._layout.make()
        self._folder = self._layout.job_checkpoints(plan.job)
        self._saver = Saver(self._layout, plan, 1, lambda line: None)

    def begin(self, at: TrainingState) -> None:
        self._saver.begin(at)

    def before_update(self) -> None:
        self._saver.before_update()

    def durable_at(self, at: TrainingState) -> float | None:
        """Seconds since the epoch; None as long as it is not."""
        return next((each.stat().st_mtime for each in self._folder.glob("*.json")), None)

    def load(self, at: TrainingState) -> tuple[float, float]:
        """Seconds to have it memory-mapped, and then in live tensors."""
        return _load(next(self._folder.glob("*.pt")), at)

    def hash(self) -> tuple[float, float]:
        """Seconds, and bytes a second."""
        path = next(self._folder.glob("*.pt"))
        began = time.perf_counter()
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
        taken = time.perf_counter() - began
        return taken, path.stat().st_size / taken

    def remove(self) -> None:
        shutil.rmtree(self._folder)


class TorchSave:
    name = "torch.save"

    def __init__(self, folder: Path) -> None:
        self._path = folder / "plain.pt"

    def begin(self, at: TrainingState) -> None:
        torch.save(_content(at), self._path)

    def before_update(self) -> None:
        pass

    def durable_at(self, at: TrainingState) -> float:
        began = time.perf_counter()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return self._path.stat().st_mtime + time.perf_counter() - began

    def load(self, at: TrainingState) -> tuple[float, float]:
        return _load(self._path, at)

    def remove(self) -> None:
        self._path.unlink()


class AsyncSave:
    name = "async_save"

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "distributed"
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def begin(self, at: TrainingState) -> None:
        self._writing = dcp.async_save(_content(at), checkpoint_id=self._folder)

    def before_update(self) -> None:
        pass

    def durable_at(self, at: TrainingState) -> float | None:
        if not self._writing.done():
            return None
        self._writing.result()
        return (self._folder / ".metadata").stat().st_mtime

    def load(self, at: TrainingState) -> tuple[None, float]:
        began = time.perf_counter()
        dcp.load(_content(at), checkpoint_id=self._folder)
        return None, time.perf_counter() - began

    def remove(self) -> None:
        shutil.rmtree(self._folder)


def _content(at: TrainingState) -> dict[str, Any]:
    model = {name: each for name, each in at.model.state_dict().items() if name != "lm_head.weight"}
    return {"model": model, "optimizer": optim.moments(at.model, at.optimizer)}


def _load(path: Path, at: TrainingState) -> tuple[float, float]:
    began = time.perf_counter()
    saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    mapped = time.perf_counter() - began
    with torch.no_grad():
        for name, live in _content(at)["model"].items():
            live.copy_(saved["model"][name])
        for name, own in _content(at)["optimizer"].items():
            for each, live in own.items():
                live.copy_(saved["optimizer"][name][each])
    return mapped, time.perf_counter() - began


def step(at: TrainingState, tokens: Tensor, way: Any = None) -> tuple[float, float]:
    """Make one as the trainer does; returns its seconds, and those in which `way` held it up."""
    began = time.perf_counter()
    at.optimizer.zero_grad()
    at.model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    at.optimizer.clip()
    blocked = 0.0
    if way is not None:
        waits = time.perf_counter()
        way.before_update()
        blocked = time.perf_counter() - waits
    at.optimizer.step()
    at.step += 1
    return time.perf_counter() - began, blocked


def one_save(way: Any, at: TrainingState, tokens: Tensor) -> dict[str, float]:
    """Seconds (and bytes of `memory`) that a checkpoint takes in the midst of training."""
    before = [step(at, tokens)[0] for _ in range(WINDOW)]
    usual, memory = statistics.median(before), _peak_since_now()
    clock, began = time.time(), time.perf_counter()
    way.begin(at)
    blocked = time.perf_counter() - began
    taken, steps, durable = blocked, 0, None
    while steps < WINDOW or (durable := way.durable_at(at)) is None:
        seconds, waited = step(at, tokens, way)
        taken, blocked, steps = taken + seconds, blocked + waited, steps + 1
    cost = taken - steps * usual
    return {"step": usual, "blocked": blocked, "cost": cost, "durable": durable - clock, "memory": memory()}


def _peak_since_now() -> Any:
    """What returns, later, by how many bytes memory grew meanwhile; NaN where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return lambda: float("nan")
    Path("/proc/self/clear_refs").write_text("5")

    def kilobytes(name: str) -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1])

    before = kilobytes("VmRSS:")
    return lambda: (kilobytes("VmHWM:") - before) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.checkpoint")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"checkpoints each way [{ROUNDS}]")
    parser.add_argument("--model", default="gpt2", help="gpt2 to gpt2-xl, or nano for a quick look [gpt2]")
    parser.add_argument("--folder", type=Path, help="where to write [the system's own for temporary files]")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch.distributed")
    given = {name: Given(value, "bench") for name, value in {"data": "a", "model": arguments.model}.items()}
    plan = Plan(job="bench", kind="train", settled=settle(given), data_name="a", data_digest="d", parent=None)
    device = open_device("cpu", "float32")
    at = state.load(Layout(Path()), plan, None, device)
    tokens = torch.randint(0, plan.settled.model.vocab_size, (BATCH, min(CONTEXT, plan.settled.model.n_positions) + 1))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        ways = [Ours(Path(folder), plan), TorchSave(Path(folder)), AsyncSave(Path(folder))]
        measure(ways, at, tokens, arguments.rounds)
    dist.destroy_process_group()


def measure(ways: list[Any], at: TrainingState, tokens: Tensor, rounds: int) -> None:
    step(at, tokens)
    first, later = {}, defaultdict(list)
    for way in ways:
        first[way.name] = one_save(way, at, tokens)
        first[way.name]["mapped"], first[way.name]["loaded"] = way.load(at)
        if isinstance(way, Ours):
            hashing = way.hash()
        way.remove()
    for _ in range(rounds):
        for way in random.sample(ways, len(ways)):
            later[way.name].append(one_save(way, at, tokens))
            print(way.name, ", ".join(f"{what} {value:.3g}" for what, value in later[way.name][-1].items()), flush=True)
            way.remove()
    size = sum(each.nbytes for each in optim.moments(at.model, at.optimizer).values() for each in each.values())
    size += sum(each.nbytes for each in at.model.parameters())
    print(f"{size / GIGABYTE:.2f} GB, batch {BATCH} of {tokens.shape[1] - 1} tokens, medians of {rounds} checkpoints")
    print(f"{platform.platform()}, {os.cpu_count()} processors")
    print(f"Python {platform.python_version()}, torch {torch.__version__}")
    show(first, later)
    print(f"SHA-256 of the file: {hashing[0]:.2f} s, {hashing[1] / GIGABYTE:.2f} GB/s")


def show(first: dict[str, dict[str, Any]], later: dict[str, list[dict[str, float]]]) -> None:
    def median(name: str, what: str) -> float:
        return statistics.median(each[what] for each in later[name])

    print(
        f"\n{'':12}{'blocked':>9}{'first':>9}{'cost':>8}{'/ torch.save':>14}{'durable':>9}{'mapped':>8}{'loaded':>8}",
        end="",
    )
    print(f"{'memory':>10}{'step':>8}")
    for name, once in first.items():
        mapped = "" if once["mapped"] is None else f"{once['mapped']:.3f}"
        print(
            f"{name:12}{median(name, 'blocked'):9.4f}{once['blocked']:9.4f}{median(name, 'cost'):8.2f}"
            f"{median(name, 'cost') / median('torch.save', 'cost'):14.0%}{median(name, 'durable'):9.2f}"
            f"{mapped:>8}{once['loaded']:8.3f}{once['memory'] / GIGABYTE:7.2f} GB{median(name, 'step'):8.2f}"
        )
    print("seconds; `first` is blocked at the first checkpoint of all, `memory` by how much that one made it grow")


if __name__ == "__main__":
    main()
