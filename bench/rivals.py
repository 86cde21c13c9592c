"""`python -m bench.rivals KIND …`: what a rival's process does; each prints `made N` after N steps, without an end.

`transformers` is a plain loop as its users write it. `floor` makes only the matrix products of a step.
"""

import argparse
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

BETAS = (0.9, 0.95)
DECAY = 0.1
CLIP = 1.0


def train_transformers(shape: argparse.Namespace) -> None:
    place = torch.device(shape.device)
    model: Any = transformers_model(shape).to(place).train()
    optimizer = torch.optim.AdamW(groups(model), lr=shape.rate, betas=BETAS, fused=True)
    if shape.compile:
        model = torch.compile(model)
    data = np.memmap(shape.tokens, dtype=np.uint16, mode="r")
    made = 0
    while True:
        tokens = some_windows(data, shape).to(place)
        with torch.autocast("cuda", dtype=torch.bfloat16) if place.type == "cuda" else nullcontext():
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        made += 1
        tell(made, shape, loss)


def transformers_model(shape: argparse.Namespace) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocab_size, n_positions=shape.block, n_embd=shape.n_embd, n_layer=shape.n_layer,
            n_head=shape.n_head, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            activation_function=shape.activation, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def groups(model: nn.Module) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    return [
        {"params": [each for each in parameters if each.dim() >= 2], "weight_decay": DECAY},
        {"params": [each for each in parameters if each.dim() < 2], "weight_decay": 0.0},
    ]


def some_windows(data: "np.memmap[Any, Any]", shape: argparse.Namespace) -> Tensor:
    starts = torch.randint(len(data) - shape.block, (shape.batch,)).tolist()
    return torch.stack([torch.from_numpy(data[at : at + shape.block].astype(np.int64)) for at in starts])


def tell(made: int, shape: argparse.Namespace, loss: Tensor | None = None) -> None:
    if made == 1 or made % shape.log_interval == 0:
        print(f"made {made}" + ("" if loss is None else f", loss {loss.item():.4f}"), flush=True)


@torch.no_grad()
def multiply(shape: argparse.Namespace) -> None:
    """The products of a step alone, forwards and backwards, into tensors that are there already. Weights and their
    gradients are each layer's own, what flows between the products is shared: less memory to read than any trainer has.
    Attention's are whole; a kernel that leaves out what is masked makes half of them."""
    products = [
        product
        for _ in range(shape.n_layer)
        for product in (
            *linear(shape, shape.n_embd, 3 * shape.n_embd),
            *attention(shape),
            *linear(shape, shape.n_embd, shape.n_embd),
            *linear(shape, shape.n_embd, 4 * shape.n_embd),
            *linear(shape, 4 * shape.n_embd, shape.n_embd),
        )
    ]
    products += linear(shape, shape.n_embd, shape.vocab_size)
    made = 0
    while True:
        for product in products:
            product()
        made += 1
        tell(made, shape)


def linear(shape: argparse.Namespace, inner: int, outer: int) -> "list[partial[Tensor]]":
    rows = shape.batch * shape.block
    x, dx = flowing("x", rows, inner), flowing("dx", rows, inner)
    y, dy = flowing("y", rows, outer), flowing("dy", rows, outer)
    weight, gradient = torch.rand(outer, inner), torch.rand(outer, inner)
    return [
        partial(torch.mm, x, weight.T, out=y),
        partial(torch.mm, dy, weight, out=dx),
        partial(torch.mm, dy.T, x, out=gradient),
    ]


def attention(shape: argparse.Namespace) -> "list[partial[Tensor]]":
    heads, part = shape.batch * shape.n_head, shape.n_embd // shape.n_head
    q, k, v, y = (flowing(name, heads, shape.block, part) for name in "qkvy")
    dq, dk, dv, dy = (flowing(name, heads, shape.block, part) for name in ("dq", "dk", "dv", "dy"))
    scores, dscores = (flowing(name, heads, shape.block, shape.block) for name in ("scores", "dscores"))
    return [
        partial(torch.bmm, q, k.mT, out=scores),
        partial(torch.bmm, scores, v, out=y),
        partial(torch.bmm, scores.mT, dy, out=dv),
        partial(torch.bmm, dy, v.mT, out=dscores),
        partial(torch.bmm, dscores, k, out=dq),
        partial(torch.bmm, dscores.mT, q, out=dk),
    ]


@cache
def flowing(name: str, *size: int) -> Tensor:
    return torch.rand(*size)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.rivals")
    parser.add_argument("kind", choices=("transformers", "floor"))
    for name in ("n-layer", "n-head", "n-embd", "vocab-size", "batch", "block", "log-interval"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--activation", default="gelu_new")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    {"transformers": train_transformers, "floor": multiply}[arguments.kind](arguments)


if __name__ == "__main__":
    main()
