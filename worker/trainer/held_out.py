"""A model's losses on held-out windows at any context, as numbers: for `gptjobs compare --eval-context`."""

import torch

from worker.trainer.batches import Batches
from worker.trainer.device import Device
from worker.trainer.model import GPT

_ROWS = 16


def losses_on_held_out(model: GPT, data: Batches, context: int, tokens: int, device: Device) -> list[float]:
    """The mean loss in nats a token of each window of `context` tokens among the first `tokens` that training evaluates
    on. Raises Refused where the data has none of that length."""
    made: list[float] = []
    with torch.inference_mode():
        count = data.held_out_windows(tokens, context)
        for inputs, targets in data.held_out(range(count), context, _ROWS):
            made += model.losses(device.put(inputs), device.put(targets)).mean(1).tolist()
    return made
