"""A model whose weights, gradients and moments are split over the ranks, by FSDP2: for one that does not fit on each.

A layer's weights are whole only while it computes. All ranks have to make the same passes at the same time, so none of
them can halve its windows alone, or leave an evaluation. A checkpoint has whole tensors, as every other.

What torch has for this is imported where a model is split: it takes half a second.
"""

from typing import Any, cast

import torch.distributed as dist
from torch import Tensor, nn

from worker.trainer.device import Device
from worker.trainer.model import GPT


def split(model: GPT, device: Device) -> None:
    """Keep this rank's part of each tensor, on the device: block by block, so that never more than one is whole there.
    All ranks have the same weights before."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.place.type, (dist.get_world_size(),))
    for module in (*cast(nn.ModuleList, model.transformer["h"]), model):
        sharded = fully_shard(module, mesh=mesh)
        sharded.set_gradient_divide_factor(1.0)  # the loss has the divisor
        sharded.set_force_sum_reduction_for_comms(True)  # as gloo can do nothing else
    for computes in ("loss", "losses"):
        register_fsdp_forward_method(model, computes)
    model.is_split = True


def is_split(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def on_all(tensor: Tensor) -> Tensor:
    """The whole tensor for every rank, if it is split."""
    return cast(Tensor, cast(Any, tensor).full_tensor()) if is_split(tensor) else tensor


def on_first(tensor: Tensor) -> Tensor:
    """If it is split, the whole tensor in host memory, for the first rank; all have to ask for it."""
    if not is_split(tensor):
        return tensor
    gathered = on_all(tensor)
    return gathered.cpu() if dist.get_rank() == 0 else gathered.new_empty(0)


def as_split(tensor: Tensor, like: Tensor) -> Tensor:
    """If `like` is split, this rank's part of a tensor that all ranks have."""
    if not is_split(like):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
