"""A model's loss over the whole of a file, window by window, as a number each: for `gptjobs data inspect --loss`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from worker.trainer.model import GPT

_BATCH_TOKENS = 4096


def losses_of_windows(model: GPT, file: Path, block: int) -> Iterator[tuple[int, list[float]]]:
    """The mean loss of the windows of `block` tokens, in their order, some at a time with the place of the first. What
    is left at the end, and is no whole window, is left out."""
    count = (file.stat().st_size // 2 - 1) // block
    rows = max(1, _BATCH_TOKENS // block)
    place = model.wte.weight.device
    with file.open("rb") as tokens, torch.inference_mode():
        for first in range(0, count, rows):
            here = min(rows, count - first)
            tokens.seek(2 * first * block)
            read = np.fromfile(tokens, dtype="<u2", count=here * block + 1).astype(np.int64)
            windows = torch.from_numpy(read).to(place)
            losses = model.losses(windows[:-1].view(here, block), windows[1:].view(here, block))
            yield first, losses.float().mean(dim=1).tolist()
