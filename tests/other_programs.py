"""Checkpoints as other programs write them: a GPT after nanoGPT's shape, Adam as they group it, and their files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYERS, HEADS, WIDTH, POSITIONS, ROWS = 2, 4, 32, 16, 256
RATE = 1e-2
EPSILON = 1e-4
"""Adam's, large: the gradient of a key's bias is rounding alone, which a small one would blow up."""


class Attention(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH, bias=bias), nn.Linear(WIDTH, WIDTH, bias=bias)
        self.register_buffer("bias", torch.tril(torch.ones(POSITIONS, POSITIONS)).view(1, 1, POSITIONS, POSITIONS))

    def forward(self, x: Tensor) -> Tensor:
        rows, context, _ = x.shape
        q, k, v = (
            each.view(rows, context, HEADS, WIDTH // HEADS).transpose(1, 2) for each in self.c_attn(x).split(WIDTH, 2)
        )
        scores = (q @ k.transpose(-2, -1)) * (WIDTH // HEADS) ** -0.5
        scores = scores.masked_fill(self.bias[:, :, :context, :context] == 0, float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, context, WIDTH)
        return self.c_proj(mixed)


class Block(nn.Module):
    def __init__(self, bias: bool, activation: nn.GELU) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(WIDTH, bias=bias), Attention(bias)
        self.ln_2 = nn.LayerNorm(WIDTH, bias=bias)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(WIDTH, 4 * WIDTH, bias=bias), "c_proj": nn.Linear(4 * WIDTH, WIDTH, bias=bias)}
        )
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](self.activation(self.mlp["c_fc"](self.ln_2(x))))


class PlainGPT(nn.Module):
    """After nanoGPT's model.py, with the masks of its earlier versions. Every weight is far from its start, so that
    every term shows."""

    def __init__(
        self, *, bias: bool = True, tied: bool = True, rows: int = ROWS, approximate: str = "none", seed: int = 1
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(rows, WIDTH),
                "wpe": nn.Embedding(POSITIONS, WIDTH),
                "h": nn.ModuleList([Block(bias, nn.GELU(approximate)) for _ in range(LAYERS)]),
                "ln_f": nn.LayerNorm(WIDTH, bias=bias),
            }
        )
        self.lm_head = nn.Linear(WIDTH, rows, bias=False)
        if tied:
            self.transformer["wte"].weight = self.lm_head.weight
        with torch.no_grad():
            for parameter in self.parameters():
                parameter += 0.2 * torch.randn_like(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.transformer["wte"](tokens) + self.transformer["wpe"](torch.arange(tokens.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def some_tokens(seed: int = 2) -> Tensor:
    return torch.randint(ROWS, (3, POSITIONS), generator=torch.Generator().manual_seed(seed))


def one_group(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": list(model.parameters()), "weight_decay": 0.1}]


def in_two(model: nn.Module, decays: Callable[[str, Tensor], bool], *, by_name: bool) -> list[dict[str, Any]]:
    named = dict(model.named_parameters())
    names = sorted(named) if by_name else list(named)
    return [
        {"params": [named[name] for name in names if decays(name, named[name])], "weight_decay": 0.1},
        {"params": [named[name] for name in names if not decays(name, named[name])], "weight_decay": 0.0},
    ]


def nanogpts_groups(model: nn.Module) -> list[dict[str, Any]]:
    return in_two(model, lambda name, each: each.dim() >= 2, by_name=False)


def reversed_groups(model: nn.Module) -> list[dict[str, Any]]:
    return nanogpts_groups(model)[::-1]


def groups_by_name(model: nn.Module) -> list[dict[str, Any]]:
    return in_two(model, lambda name, each: each.dim() >= 2, by_name=True)


def mingpts_groups(model: nn.Module) -> list[dict[str, Any]]:
    """By name, and the tables do not decay."""
    return in_two(model, lambda name, each: each.dim() >= 2 and "transformer.w" not in name, by_name=True)


GROUPINGS = (one_group, nanogpts_groups, reversed_groups, groups_by_name, mingpts_groups)


def adamw(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.85, 0.97), eps=EPSILON)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    """Make updates, each on a batch of its own; a model of Hugging Face's gives its logits in an object."""
    for step in range(first, first + steps):
        tokens = some_tokens(seed=100 + step)
        logits = model(tokens)
        loss = F.cross_entropy(getattr(logits, "logits", logits)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def save_as_nanogpt(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **config: Any
) -> Path:
    """As nanoGPT's train.py does, from a compiled model; `config` adds to its config."""
    arguments = {
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_embd": WIDTH,
        "block_size": POSITIONS,
        "bias": "transformer.ln_f.bias" in model.state_dict(),
        "vocab_size": model.state_dict()["transformer.wte.weight"].shape[0],
        "dropout": 0.0,
    }
    settings = {
        "out_dir": "out", "eval_interval": 250, "dataset": "shakespeare", "gradient_accumulation_steps": 5,
        "batch_size": 4, "block_size": POSITIONS, "learning_rate": RATE, "max_iters": 5000, "weight_decay": 0.1,
        "beta1": 0.85, "beta2": 0.97, "grad_clip": 1.0, "decay_lr": True, "warmup_iters": 100,
        "lr_decay_iters": 5000, "min_lr": 1e-4, "compile": True,
    }  # fmt: skip
    content = {
        "model": {f"_orig_mod.{name}": each for name, each in model.state_dict().items()},
        "optimizer": optimizer.state_dict() if optimizer else None,
        "model_args": arguments,
        "iter_num": 2000,
        "best_val_loss": torch.tensor(2.25),
        "config": settings | config,
    }
    torch.save(content, path)
    return path


def save_as_common(
    path: Path, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer | None = None, **changes: Any
) -> Path:
    """The layout that most training scripts have, with `changes` at its top; None leaves an entry out."""
    content = {
        "model_state_dict": weights,
        "optimizer_state_dict": optimizer.state_dict() if optimizer else None,
        "step": 1500,
        "train_loss": 2.5,
        "val_loss": 2.75,
        "config": {"n_head": HEADS, "batch_size": 8, "block_size": 8, "learning_rate": RATE},
        **changes,
    }
    torch.save({name: value for name, value in content.items() if value is not None}, path)
    return path
