"""AdamW (Loshchilov & Hutter 2019) with decay on matrices only, and its moments under the tensors' names."""

from typing import Any

import torch
from torch import Tensor, nn

from gptjobs.config import TrainConfig
from worker.trainer.device import Device

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


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def moments(model: nn.Module, optimizer: torch.optim.AdamW) -> Moments:
    """The optimizer's state by the name of its tensor: `step`, `exp_avg`, `exp_avg_sq`."""
    return {name: dict(optimizer.state[each]) for name, each in model.named_parameters() if each in optimizer.state}


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
    grown = torch.zeros_like(tensor)
    grown[: moment.shape[0]] = moment.to(tensor.device)
    return grown
