"""Matrix products of float32 on a CPU, by oneDNN.

torch takes MKL's, which on AMD's processors are a tenth slower at the shapes of a GPT-2, and a third at the output
head's (one core of an EPYC, 512 rows: 95 and 60 GFLOP/s against 104 and 88). torch's own door to oneDNN for this is
the operator that its compiler uses.
"""

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_HAS_ONEDNN: bool = torch._C._has_mkldnn and platform.machine() == "x86_64"


def by_transposed(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a @ b.T + bias, of matrices [rows, k] and [columns, k] that may be transposed views."""
    if _HAS_ONEDNN and a.device.type == "cpu" and a.dtype is torch.float32 and a.numel() > 0:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
        return product
    return F.linear(a, b, bias)


class Linear(nn.Linear):
    """nn.Linear, with all three products of a float32 layer on a CPU by oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        if _HAS_ONEDNN and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            product: Tensor = _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return product
        return super().forward(x)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return by_transposed(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = gradients[0].flatten(0, -2)
        of_x = by_transposed(rows, weight.t()).view(x.shape)
        of_weight = by_transposed(rows.t(), x.flatten(0, -2).t())
        return of_x, of_weight, rows.sum(0) if ctx.has_bias else None
