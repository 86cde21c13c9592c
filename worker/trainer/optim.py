"""AdamW (Loshchilov & Hutter 2019) with decay on matrices only, and its moments under the tensors' names."""

from typing import Any

import torch
from torch import Tensor, nn

from gptjobs.config import TrainConfig
from worker.trainer.device import Device
from worker.trainer.shards import as_split, on_all, on_first

Moments = dict[str, dict[str, Tensor]]


def adamw(model: nn.Module, train: TrainConfig, device: Device) -> torch.optim.AdamW:
    matrices = [each for each in model.parameters() if each.dim() >= 2]
    vectors = [each for each in model.parameters() if each.dim() < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": train.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        eps=train.epsilon,
        fused=device.place.type in ("cuda", "cpu"),
    )


def gradients(optimizer: torch.optim.AdamW) -> list[Tensor]:
    """Those that the next update takes."""
    return [each.grad for group in optimizer.param_groups for each in group["params"]]


def clip(optimizer: torch.optim.AdamW, largest_norm: float) -> Tensor:
    """Have the next update scale gradients down whose norm is above `largest_norm` (0: never). Returns the norm, still
    on the device. Where it is not finite, the fused update applies nothing."""
    made = gradients(optimizer)
    norm = on_all(torch.nn.utils.get_total_norm(made, foreach=True))
    scale = (norm / largest_norm).clamp_(min=1.0) if largest_norm else torch.ones_like(norm)
    if optimizer.defaults["fused"]:
        # as a gradient scaler says it: the update divides as it reads, where clipping takes a pass more
        optimizer.grad_scale, optimizer.found_inf = scale, (~norm.isfinite()).float()  # type: ignore[attr-defined]
    else:
        torch._foreach_div_(made, scale)
    return norm


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def moments(model: nn.Module, optimizer: torch.optim.AdamW) -> Moments:
    """The optimizer's state by the name of its tensor: `step`, `exp_avg`, `exp_avg_sq`."""
    return {
        name: {kind: on_first(moment) for kind, moment in optimizer.state[each].items()}
        for name, each in model.named_parameters()
        if each in optimizer.state
    }


def restore_moments(model: nn.Module, optimizer: torch.optim.AdamW, saved: Moments) -> None:
    """Give each tensor its moments back. Nothing else comes back: rates, betas and decay are the job's."""
    by_name: dict[str, Any] = dict(model.named_parameters())
    for name, entry in saved.items():
        tensor = by_name[name]
        own = {
            "exp_avg": _fitted(entry["exp_avg"], tensor),
            "exp_avg_sq": _fitted(entry["exp_avg_sq"], tensor),
        }
        on_device = tensor.device if tensor.device.type == "cuda" else "cpu"
        optimizer.state[tensor] = {"step": entry["step"].clone().to(on_device), **own}


def _fitted(moment: Tensor, tensor: Tensor) -> Tensor:
    """The moment in the tensor's shape: rows that a table grew have none yet."""
    grown = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    grown[: moment.shape[0]] = moment.to(tensor.device)
    return as_split(grown, tensor)
