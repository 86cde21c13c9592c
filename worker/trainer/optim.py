"""AdamW (Loshchilov & Hutter 2019) with decay on matrices only, and its moments under the tensors' names."""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from gptjobs.config import TrainConfig
from gptjobs.diagnosis import Band
from worker.trainer.device import Device
from worker.trainer.shards import as_split, on_all, on_first

Moments = dict[str, dict[str, Tensor]]


class Clipped(NamedTuple):
    """What clipping saw, still on the device: the gradient's norm, that of each parameter, and 1 where the update will
    be left out."""

    norm: Tensor
    norms: Tensor
    left_out: Tensor


class AdamW:
    """The update of torch.optim.AdamW, by the same kernels and with the same state, but not by its module: that imports
    torch's compiler, which takes a second and 75 MB, and its checks are a thirtieth of a small model's step. `fused` is
    one pass over all tensors, where torch has that."""

    def __init__(self, model: nn.Module, train: TrainConfig, *, fused: bool) -> None:
        parameters = list(model.parameters())
        self.groups = [
            ([each for each in parameters if each.dim() >= 2], train.weight_decay),
            ([each for each in parameters if each.dim() < 2], 0.0),
        ]
        named = list(model.named_parameters())
        self.names = [name for flat in (False, True) for name, each in named if (each.dim() < 2) is flat]
        """of the parameters, in the order of the gradients"""
        self.rate = train.learning_rate
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        """`step`, `exp_avg`, `exp_avg_sq` of each tensor that was updated"""
        self.train, self._fused = train, fused
        self.band: Band | None = None
        """a loss or gradient norm outside of it leaves the update out"""
        self._scale: Tensor | None = None
        self._is_left_out = torch.zeros((), device=parameters[0].device)

    @property
    def gradients(self) -> list[Tensor]:
        """Those that the next update takes."""
        return [each.grad for parameters, _ in self.groups for each in parameters if each.grad is not None]

    def zero_grad(self) -> None:
        for parameters, _ in self.groups:
            for each in parameters:
                each.grad = None

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Of the gradients as they are, still on the device."""
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.gradients)))
        return norm

    def clip(self, loss: Tensor) -> Clipped:
        """Have the next update scale gradients down, and leave it out where the loss or their norm is not finite or not
        in the band. Nothing waits for the device."""
        gradients = self.gradients
        norms = on_all(torch.stack(torch._foreach_norm(gradients)))
        norm = torch.linalg.vector_norm(norms)
        largest = self.train.grad_clip
        scale = (norm / largest).clamp_(min=1.0) if largest else torch.ones_like(norm)
        left_out = ~(norm + loss).isfinite()
        if self.band is not None:
            left_out |= (loss < self.band.low) | (loss > self.band.high) | (norm > self.band.norm)
        self._is_left_out = left_out.float()
        if self._fused:
            # as a gradient scaler says it: the update divides as it reads, where clipping takes a pass more
            self._scale = scale
        else:
            torch._foreach_div_(gradients, scale)
            for each in gradients:
                each.masked_fill_(left_out, 0.0)
        return Clipped(norm=norm, norms=norms, left_out=self._is_left_out)

    @torch.no_grad()
    def step(self) -> None:
        """Update each tensor that has a gradient."""
        for parameters, decay in self.groups:
            updated: list[Tensor] = [each for each in parameters if each.grad is not None]
            if updated:
                self._update(updated, decay)

    def _update(self, tensors: list[Tensor], decay: float) -> None:
        states = [self._state_of(each) for each in tensors]
        gradients = cast(list[Tensor], [each.grad for each in tensors])
        means, squares, steps = ([each[name] for each in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        torch._foreach_add_(steps, 1)
        train = self.train
        if not self._fused:
            step, kept = int(steps[0].item()), 1.0 - self._is_left_out
            _update_plainly(tensors, gradients, means, squares, step, self.rate, decay, train, kept)
            return
        torch._fused_adamw_(
            tensors, gradients, means, squares, [], steps, lr=self.rate, beta1=train.beta1, beta2=train.beta2,
            weight_decay=decay, eps=train.epsilon, amsgrad=False, maximize=False,
            grad_scale=self._scale, found_inf=self._is_left_out,
        )  # fmt: skip
        torch._foreach_sub_(steps, [self._is_left_out] * len(steps))

    def _state_of(self, tensor: Tensor) -> dict[str, Tensor]:
        if tensor not in self.state:
            self.state[tensor] = {
                "step": torch.zeros((), device=_device_of_steps(tensor)),
                "exp_avg": torch.zeros_like(tensor),
                "exp_avg_sq": torch.zeros_like(tensor),
            }
        return self.state[tensor]


def _update_plainly(
    tensors: list[Tensor], gradients: list[Tensor], means: list[Tensor], squares: list[Tensor], step: int,
    rate: float, decay: float, train: TrainConfig, kept: Tensor,
) -> None:  # fmt: skip
    """Algorithm 2 of the paper, an operation at a time. `kept` is 1; where the update is left out it is 0, as are the
    gradients, and nothing changes but the count of updates, which would have to wait for the device."""
    torch._foreach_mul_(tensors, 1 - rate * decay * kept)
    torch._foreach_mul_(means, 1 - (1 - train.beta1) * kept)
    torch._foreach_add_(means, gradients, alpha=1 - train.beta1)
    torch._foreach_mul_(squares, 1 - (1 - train.beta2) * kept)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - train.beta2)
    spread = torch._foreach_sqrt(squares)
    torch._foreach_div_(spread, math.sqrt(1 - train.beta2**step))
    torch._foreach_add_(spread, train.epsilon)
    torch._foreach_div_(spread, kept)
    torch._foreach_addcdiv_(tensors, means, spread, -rate / (1 - train.beta1**step))


def adamw(model: nn.Module, train: TrainConfig, device: Device) -> AdamW:
    """Fused where that was found to be right: on Metal most of torch's tests of it are skipped."""
    return AdamW(model, train, fused=device.place.type in ("cuda", "cpu"))


def moments(model: nn.Module, optimizer: AdamW) -> Moments:
    """The optimizer's state by the name of its tensor: `step`, `exp_avg`, `exp_avg_sq`."""
    return {
        name: {kind: on_first(moment) for kind, moment in optimizer.state[each].items()}
        for name, each in model.named_parameters()
        if each in optimizer.state
    }


def restore_moments(model: nn.Module, optimizer: AdamW, saved: Moments) -> None:
    """Give each tensor its moments back. Nothing else comes back: rates, betas and decay are the job's."""
    by_name: dict[str, Any] = dict(model.named_parameters())
    for name, entry in saved.items():
        tensor = by_name[name]
        own = {
            "exp_avg": _fitted(entry["exp_avg"], tensor),
            "exp_avg_sq": _fitted(entry["exp_avg_sq"], tensor),
        }
        optimizer.state[tensor] = {"step": entry["step"].clone().to(_device_of_steps(tensor)), **own}


def _device_of_steps(tensor: Tensor) -> torch.device:
    """Where the kernels want a tensor's count of updates."""
    return tensor.device if tensor.device.type == "cuda" else torch.device("cpu")


def _fitted(moment: Tensor, tensor: Tensor) -> Tensor:
    """The moment in the tensor's shape: rows that a table grew have none yet."""
    grown = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    grown[: moment.shape[0]] = moment.to(tensor.device)
    return as_split(grown, tensor)
