"""The trainers that are held against each other, each as a process whose lines tell how many steps it has made.

All have the same shape and vocabulary, no dropout, biases, tied tables, positions for one window, tokens drawn by
chance, AdamW with betas 0.9 and 0.95 and decay 0.1 on matrices, a constant rate, gradients clipped to 1, float32 on a
CPU, bfloat16 on CUDA, and as many threads. Each keeps its own GELU: nanoGPT's is exact, transformers' and ours are the
tanh approximation that GPT-2 has.

nanoGPT is its own train.py, unmodified, with its options. transformers has no loop of its own but its Trainer; what
stands for it is a plain loop with that Trainer's optimizer, which is fused AdamW (bench/rivals.py).
"""

import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import ours
from gptjobs import progress
from gptjobs.config import ModelConfig, TrainConfig
from gptjobs.layout import Layout

TOKENS = 1_000_000
RATE = 1e-4
ENDLESS = 10**9
"""steps: a contender is killed once enough of them are timed"""
DATA = "chance"
DIGEST = "0" * 64


@dataclass(frozen=True, kw_only=True)
class Shape:
    name: str
    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int
    batch: int
    block: int
    log_interval: int = 1
    """steps between a contender's lines"""
    device: str = "cpu"

    @property
    def title(self) -> str:
        return f"{self.name}, B={self.batch}, T={self.block}"

    @property
    def job(self) -> str:
        return f"{self.name}-b{self.batch}-t{self.block}"

    @property
    def flops(self) -> float:
        """Of a step, as nanoGPT counts them: 6 a weight and token, 12 a layer, width and position for attention
        (Chowdhery et al. 2022, appendix B)."""
        weights = 12 * self.n_layer * self.n_embd**2 + self.vocab_size * self.n_embd
        return self.batch * self.block * (6 * weights + 12 * self.n_layer * self.n_embd * self.block)


def large(batch: int, block: int, device: str = "cpu") -> Shape:
    return Shape(
        name="124M", n_layer=12, n_head=12, n_embd=768, vocab_size=50257, batch=batch, block=block, device=device
    )  # fmt: skip


def small(batch: int, block: int) -> Shape:
    """As `--model nano`: text is its bytes."""
    return Shape(
        name="small", n_layer=4, n_head=4, n_embd=128, vocab_size=256, batch=batch, block=block, log_interval=10
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Launch:
    command: list[str]
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Contender:
    name: str
    launch: Callable[[Shape, Path], Launch]
    """Prepare what it needs in a folder of the bench's"""

    @property
    def slug(self) -> str:
        """For file names: a compiler's command line does not take spaces in them."""
        return re.sub(r"\W+", "-", self.name)


def steps_made(line: str) -> int | None:
    """How many updates the contender's line tells of; None for another line."""
    if match := re.match(r"iter (\d+):", line):
        return int(match[1]) + 1
    if match := re.match(r"made (\d+)", line):
        return int(match[1])
    ours_said = progress.decode(line)
    return ours_said.step if isinstance(ours_said, progress.Progress) else None


def contenders(nanogpt: Path | None) -> list[Contender]:
    """The first is the one that the others are compared with."""
    launches: dict[str, Callable[[Shape, Path], Launch]] = {}
    if nanogpt is not None:
        launches |= {
            "nanoGPT": partial(_nanogpt, nanogpt, False),
            "nanoGPT, compiled": partial(_nanogpt, nanogpt, True),
        }
    launches |= {
        "transformers": partial(_rival, ["transformers"]),
        "transformers, compiled": partial(_rival, ["transformers", "--compile"]),
        "gptjobs": partial(_ours, {}),
        "gptjobs, compile on": partial(_ours, {"compile": "on"}),
        "gptjobs, compile off": partial(_ours, {"compile": "off"}),
        "gptjobs, precision auto": partial(_ours, {"precision": "auto"}),
        "floor": partial(_rival, ["floor"]),
    }
    return [Contender(name=name, launch=launch) for name, launch in launches.items()]


def _token_file(shape: Shape, folder: Path) -> Path:
    """Tokens drawn by chance, with the vocabulary's size beside them, where nanoGPT looks for both."""
    data = folder / "data" / f"{DATA}{shape.vocab_size}"
    if not data.exists():
        data.mkdir(parents=True)
        drawn = np.random.default_rng(1).integers(shape.vocab_size, size=TOKENS, dtype=np.uint16)
        for name in ("train.bin", "val.bin"):
            drawn.tofile(data / name)
        (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": shape.vocab_size}))
    return data / "train.bin"


def _nanogpt(clone: Path, compile: bool, shape: Shape, folder: Path) -> Launch:
    """Its script reads its configurator and its data from the working directory, and imports its model from where the
    script really is."""
    data = _token_file(shape, folder).parent
    for name in ("train.py", "configurator.py"):
        link = folder / name
        if not link.exists():
            link.symlink_to(clone / name)
    options = {
        "device": shape.device, "dtype": "float32" if shape.device == "cpu" else "bfloat16", "compile": compile,
        "dataset": data.name, "batch_size": shape.batch, "block_size": shape.block, "gradient_accumulation_steps": 1,
        "n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.n_embd, "bias": True, "dropout": 0.0,
        "learning_rate": RATE, "decay_lr": False, "max_iters": ENDLESS, "log_interval": shape.log_interval,
        "eval_interval": ENDLESS, "eval_iters": 1,
    }  # fmt: skip
    command = [sys.executable, "train.py", *(f"--{name}={value}" for name, value in options.items())]
    return Launch(command=command, folder=folder)


def _rival(what: list[str], shape: Shape, folder: Path) -> Launch:
    values = {**asdict(shape), "tokens": str(_token_file(shape, folder)), "rate": RATE}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if name != "name"]
    return Launch(command=[sys.executable, "-m", "bench.rivals", *what, *arguments], folder=folder)


def _ours(hyperparameters: dict[str, Any], shape: Shape, folder: Path) -> Launch:
    layout = Layout(folder / "root")
    layout.make()
    tokens = layout.token_file(f"{DATA}{shape.vocab_size}", DIGEST, "bytes" if shape.vocab_size == 256 else "r50k_base")
    if not tokens.exists():
        tokens.parent.mkdir(parents=True)
        tokens.symlink_to(_token_file(shape, folder))
    model = ModelConfig(
        n_layer=shape.n_layer, n_head=shape.n_head, n_embd=shape.n_embd, n_positions=shape.block,
        vocab_size=shape.vocab_size,
    )  # fmt: skip
    hyperparameters = {"precision": "float32" if shape.device == "cpu" else "bfloat16", **hyperparameters}
    train = TrainConfig(
        data=DATA, encoding=tokens.stem, steps=ENDLESS, batch_size=shape.batch, block_size=shape.block,
        learning_rate=RATE, schedule="constant", warmup_steps=0, eval_interval=ENDLESS, eval_tokens=1,
        checkpoint_interval=ENDLESS, log_interval=shape.log_interval, **hyperparameters,
    )  # fmt: skip
    job = "-".join((shape.job, *hyperparameters.values()))
    config = ours.write_job(layout, job, model, train, f"{DATA}{shape.vocab_size}", DIGEST)
    return Launch(command=ours.command(config, shape.device), folder=folder)
