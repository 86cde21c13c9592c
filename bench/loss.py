"""`python -m bench.loss`: the validation loss at equal tokens, our trainer beside nanoGPT's model in a plain loop.

Both begin with the weights that our trainer begins with, see the same batches in the same order, step with the same
learning rate, and are evaluated on the same held-out windows. nanoGPT's train.py draws its batches by chance, so what
stands for it is its model and its `configure_optimizers` in a loop as its own: loss, backward, clip, step. Where no
clone is named, transformers' GPT-2 stands there. Ours is to be at most 0.01 nats above.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench import ours, report
from bench.rivals import BETAS, CLIP, DECAY, groups, transformers_model
from gptjobs import progress
from gptjobs.config import BYTES, ModelConfig, Plan, TrainConfig
from gptjobs.data import tokens
from gptjobs.layout import Layout, dataset_name
from tests.conftest import english
from worker.trainer import state
from worker.trainer.batches import Batches
from worker.trainer.device import open_device

BOUND = 0.01
"""nats a token"""
SEEDS = (1, 2, 3)
WORDS = 60_000
"""of the text that is made where none is given"""
MODEL = ModelConfig(n_layer=4, n_head=4, n_embd=128, n_positions=64, vocab_size=256, activation="gelu")
"""with nanoGPT's GELU"""
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
"""in transformers, which has OpenAI's Conv1D"""


def training(data: str, steps: int, seed: int) -> TrainConfig:
    return TrainConfig(
        data=data, encoding=BYTES, steps=steps, batch_size=12, block_size=64, learning_rate=1e-3,
        warmup_steps=steps // 10, decay_steps=steps, min_learning_rate=1e-4, weight_decay=DECAY, beta1=BETAS[0],
        beta2=BETAS[1], grad_clip=CLIP, eval_interval=steps, eval_tokens=32768, checkpoint_interval=steps, seed=seed,
    )  # fmt: skip


def loss_of_ours(config: Path, environment: dict[str, str]) -> float:
    """What the trainer as shipped says at its last step."""
    done = subprocess.run(ours.command(config, "cpu"), env=environment, capture_output=True, text=True)
    lines = [progress.decode(line) for line in done.stdout.splitlines()]
    losses = [each.val_loss for each in lines if isinstance(each, progress.Progress) and each.val_loss is not None]
    if done.returncode != 0 or not losses:
        raise SystemExit(f"our trainer failed: {done.stderr}")
    return losses[-1]


def loss_of_theirs(layout: Layout, plan: Plan, clone: Path | None) -> float:
    config = plan.settled.train
    data = Batches(layout.token_file(plan.data_name, plan.data_digest, config.encoding), config.block_size, config.seed)
    first = state.load(layout, plan, None, open_device("cpu", "float32")).model.state_dict()
    model, optimizer = _transformers(first, config) if clone is None else _nanogpt(clone, first, config)
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step)
        _loss(model, *data.batch(step * config.batch_size, config.batch_size)).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval()
    with torch.no_grad():
        places = range(data.held_out_windows(config.eval_tokens, config.block_size))
        held_out = list(data.held_out(places, config.block_size, config.batch_size))
        total = sum(_loss(model, *each).item() * each[1].numel() for each in held_out)
    return total / sum(each[1].numel() for each in held_out)


def _loss(model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    """nanoGPT gives its logits first, transformers in an object."""
    if hasattr(model, "configure_optimizers"):
        return cast(Tensor, model(inputs, targets)[1])
    return nn.functional.cross_entropy(model(input_ids=inputs).logits.flatten(0, 1), targets.flatten())


def _nanogpt(clone: Path, first: dict[str, Tensor], config: TrainConfig) -> tuple[nn.Module, torch.optim.Optimizer]:
    sys.path.insert(0, str(clone))
    sys.dont_write_bytecode = True
    from model import GPT, GPTConfig  # type: ignore[import-not-found]  # the clone's own name for it

    model = GPT(
        GPTConfig(
            block_size=MODEL.n_positions, vocab_size=MODEL.vocab_size, n_layer=MODEL.n_layer, n_head=MODEL.n_head,
            n_embd=MODEL.n_embd, dropout=0.0, bias=True,
        )
    )  # fmt: skip
    model.load_state_dict(first)
    return model, model.configure_optimizers(DECAY, config.learning_rate, BETAS, "cpu")


def _transformers(first: dict[str, Tensor], config: TrainConfig) -> tuple[nn.Module, torch.optim.Optimizer]:
    values: dict[str, Any] = {name: getattr(MODEL, name) for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    model = transformers_model(argparse.Namespace(**values, block=MODEL.n_positions, activation="gelu"))
    model.load_state_dict({name: each.T if name.endswith(TRANSPOSED) else each for name, each in first.items()})
    return model, torch.optim.AdamW(groups(model), lr=config.learning_rate, betas=BETAS)


def measured(folder: Path, text: Path, steps: int, clone: Path | None, threads: int) -> Iterator[list[str]]:
    """A row of the table a seed."""
    layout = Layout(folder / "root")
    layout.make()
    name, digest = dataset_name(text.name), tokens.digest_of(text)
    tokens.prepare(layout, text, digest, BYTES)
    for seed in SEEDS:
        config = ours.write_job(layout, f"seed{seed}", MODEL, training(text.name, steps, seed), name, digest)
        theirs = loss_of_theirs(layout, Plan.from_dict(json.loads(config.read_bytes())), clone)
        our = loss_of_ours(config, ours.environment(threads))
        print(f"seed {seed}: ours {our:.4f}, theirs {theirs:.4f}", file=sys.stderr)
        verdict = "yes" if our <= theirs + BOUND else "no"
        yield [str(seed), f"{theirs:.4f}", f"{our:.4f}", f"{our - theirs:+.4f}", verdict]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.loss", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT; else NANOGPT_DIR", metavar="DIR")
    parser.add_argument("--text", type=Path, help="to train on; else a text is made", metavar="FILE")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    clone = report.clone_of_nanogpt(asked.nanogpt)
    torch.set_num_threads(asked.threads)
    folder = Path(tempfile.mkdtemp())
    try:
        text = asked.text or folder / "text.md"
        if asked.text is None:
            text.write_text(english(WORDS))
        rows = list(measured(folder, text, asked.steps, clone, asked.threads))
    finally:
        shutil.rmtree(folder)
    print(report.machine(asked.threads, report.rivals(clone)))
    print()
    rival = "transformers" if clone is None else "nanoGPT"
    print(report.table(["seed", f"{rival}, nats", "gptjobs, nats", "difference", f"at most {BOUND} above"], rows))


if __name__ == "__main__":
    main()
