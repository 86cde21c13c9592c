"""Matrix products of float32 on a CPU, by oneDNN where that is faster.

torch takes MKL's. On AMD's processors those are a tenth slower at the shapes of a GPT-2, and a third at the output
head's (one core of an EPYC, 512 rows: 95 and 60 GFLOP/s against 104 and 88); of small matrices, and for the gradients
of weights, they are the better ones. torch's door to oneDNN for this is the operator that its compiler uses.
"""

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_HAS_ONEDNN: bool = torch._C._has_mkldnn and platform.machine() == "x86_64"
_WORTH_IT = 1 << 23
"""multiplications, from which a product is faster by oneDNN"""


def by_transposed(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a @ b.T + bias, of matrices [rows, k] and [columns, k] that may be transposed views."""
    if not (_HAS_ONEDNN and a.device.type == "cpu" and a.dtype is torch.float32 and a.numel() * len(b) >= _WORTH_IT):
        # on Metal, torch 2.8 read transposed views wrongly in F.linear (pytorch issue 162730)
        return a @ b.t() if bias is None else F.linear(a, b, bias)
    by_onednn = torch.ops.gptjobs.by_onednn if torch.compiler.is_compiling() else _by_onednn
    product: Tensor = by_onednn(a, b, bias)
    return product


def _by_onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


# torch's compiler cannot take the operator itself, but one that it knows nothing of
torch.library.define("gptjobs::by_onednn", "(Tensor a, Tensor b, Tensor? bias) -> Tensor")
torch.library.impl("gptjobs::by_onednn", "cpu", _by_onednn)
torch.library.register_fake("gptjobs::by_onednn", lambda a, b, bias: a.new_empty(len(a), len(b)))


class Linear(nn.Linear):
    """nn.Linear, whose products on a CPU are those above."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
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
        return of_x, rows.t() @ x.flatten(0, -2), rows.sum(0) if ctx.has_bias else None
