"""The two ends of the model, which work on tables as long as the vocabulary: tokens in, and the loss of tokens out.

Both add the table's gradient to its `.grad` themselves, into one buffer: autograd would make a table of zeros for the
tokens that went in, and add it to that of the head. The head makes its gradients in the forward pass, a part of the
rows at a time, so that logits are never kept: at GPT-2's vocabulary they are a tenth of a megabyte a token, several
times over (as in Liger Kernel's fused linear cross entropy, Hsu et al. 2024).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from worker.trainer.products import by_transposed

_PART_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30, "mps": 1 << 28}
"""of logits in a part, by device: fewer read the table more often"""
_PADDED_TO = 64
"""rows of the head's table on CUDA, a multiple: tensor cores want it (50,257 → 50,304); files keep the vocabulary"""


def embed(table: Tensor, tokens: Tensor) -> Tensor:
    """The rows [..., width] of a table [vocabulary, width]."""
    rows: Tensor = _Embedding.apply(table, tokens)  # type: ignore[no-untyped-call]
    return rows


def cross_entropy(x: Tensor, table: Tensor, targets: Tensor, count: int) -> Tensor:
    """The cross-entropy in nats of `targets` [...] by the logits x @ table.T, with x [..., width]: its sum over
    `count`, which is all targets of the update. The table's gradient is added to its `.grad` at once, and backward()
    on the result may only be called without arguments."""
    loss: Tensor = _CrossEntropy.apply(x, table, targets, count)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def cross_entropies(x: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """That of each target [...], without gradients."""
    rows, wanted = x.flatten(0, -2), targets.flatten().unsqueeze(1)
    parts = _logits(rows, table, _as_computed(table))
    found = [log_sums - logits.gather(1, wanted[part]) for part, logits, log_sums in parts]
    return torch.cat(found).view(targets.shape)


def _logits(rows: Tensor, table: Tensor, weights: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """A part of the rows at a time: which, their logits, and the logarithms of the sums of their exponentials."""
    at_once = max(1, _PART_BYTES[rows.device.type] // (4 * len(weights)))
    for first in range(0, len(rows), at_once):
        part = slice(first, first + at_once)
        logits = by_transposed(rows[part].to(weights.dtype), weights).float()
        logits[:, len(table) :] = -math.inf
        yield part, logits, torch.logsumexp(logits, 1, keepdim=True)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, tokens: Tensor) -> Tensor:
        ctx.table, ctx.tokens = table, tokens
        return F.embedding(tokens, table)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        rows = gradients[0].flatten(0, -2)
        if ctx.table.grad is None:
            ctx.table.grad = torch.zeros_like(ctx.table)
        ctx.table.grad.index_add_(0, ctx.tokens.flatten(), rows.to(ctx.table.dtype))
        return None, None


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, targets: Tensor, count: int) -> Tensor:
        rows, wanted = x.flatten(0, -2), targets.flatten().unsqueeze(1)
        weights = _as_computed(table)
        total = torch.zeros((), device=x.device)
        of_rows = torch.empty_like(rows)
        for part, logits, log_sums in _logits(rows, table, weights):
            total += (log_sums - logits.gather(1, wanted[part])).sum()
            slopes = logits.sub_(log_sums).exp_()
            slopes.scatter_add_(1, wanted[part], torch.full_like(log_sums, -1.0))
            slopes = slopes.mul_(1.0 / count).to(weights.dtype)
            of_rows[part] = by_transposed(slopes, weights.t())
            _add_product(table, slopes, rows[part].to(weights.dtype))
        ctx.save_for_backward(of_rows.view(x.shape))
        return total / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (of_x,) = ctx.saved_tensors
        return of_x, None, None, None


def _as_computed(table: Tensor) -> Tensor:
    """The table in the arithmetic of products here, with rows that tensor cores like."""
    device = table.device.type
    if not torch.is_autocast_enabled(device):
        return table
    missing = -len(table) % _PADDED_TO if device == "cuda" else 0
    return F.pad(table.to(torch.get_autocast_dtype(device)), (0, 0, 0, missing))


def _add_product(table: Tensor, slopes: Tensor, rows: Tensor) -> None:
    """table.grad += slopes.T @ rows, but for the rows that only padding has."""
    if table.grad is None:
        table.grad = (slopes.t() @ rows)[: len(table)].to(table.dtype)
    elif slopes.dtype is table.dtype:
        table.grad.addmm_(slopes.t(), rows)
    else:
        table.grad += (slopes.t() @ rows)[: len(table)]
