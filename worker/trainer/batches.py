"""Which windows of the data a step trains on, and which ones an evaluation reads.

The data's last tenth is held out. The rest is cut into windows of `block_size` tokens; each is seen once an
epoch, in an order that is a pure function of (seed, epoch, block size). So the place in the data is one
number, the windows seen, and another batch size neither repeats nor skips one. Another seed or block size is
another order, which is begun with its first window, also where a job before had begun it.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gptjobs.config import HELD_OUT_PART
from gptjobs.errors import Refused

_ROUNDS = 6

Batch = tuple[torch.Tensor, torch.Tensor]


class Batches:
    """Windows of one token file at one block size."""

    def __init__(self, file: Path, block_size: int, seed: int) -> None:
        self._tokens: NDArray[np.uint16] = np.memmap(file, dtype="<u2", mode="r")
        self._block = block_size
        self._seed = seed
        count = len(self._tokens)
        self._held_out = count - count // HELD_OUT_PART
        self.windows = (self._held_out - 1) // block_size
        self._refuse_if_short(block_size)

    def _refuse_if_short(self, block_size: int) -> None:
        count = len(self._tokens)
        if self.windows < 1 or count - self._held_out <= block_size:
            raise Refused(
                f"the data has {count} tokens; at block size {block_size} it needs at least "
                f"{HELD_OUT_PART * (block_size + 1)}, as a tenth is held out for validation",
                hint="more data, or a smaller --block-size",
            )

    def batch(self, seen: int, count: int) -> Batch:
        """The `count` windows after the first `seen`: tokens and the tokens after them, [count, block]."""
        return self._gather(self._starts(seen, count), self._block)

    def starts(self, seen: int, count: int) -> list[int]:
        """The tokens that these windows begin at."""
        return [int(each) for each in self._starts(seen, count)]

    def _starts(self, seen: int, count: int) -> NDArray[np.int64]:
        places = np.arange(seen, seen + count, dtype=np.uint64)
        epochs, within = np.divmod(places, np.uint64(self.windows))
        chosen = np.empty(count, dtype=np.uint64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = shuffled(within[here], self.windows, self._key(int(epoch)))
        return chosen.astype(np.int64) * self._block

    def held_out_windows(self, tokens: int, context: int) -> int:
        """How many held-out windows of `context` tokens the first `tokens` tokens have; at least one. Raises Refused
        where the data has none."""
        self._refuse_if_short(context)
        available = (len(self._tokens) - self._held_out - 1) // context
        return max(1, min(tokens // context, available))

    def held_out(self, places: range, context: int, rows: int) -> Iterator[Batch]:
        """The held-out windows of `context` tokens at these places, `rows` at a time."""
        starts = self._held_out + np.array(places, dtype=np.int64) * context
        for first in range(0, len(starts), rows):
            yield self._gather(starts[first : first + rows], context)

    def _key(self, epoch: int) -> bytes:
        return f"{self._seed}/{epoch}/{self._block}".encode()

    def _gather(self, starts: NDArray[np.int64], context: int) -> Batch:
        offsets = starts[:, None] + np.arange(context + 1, dtype=np.int64)
        windows = torch.from_numpy(self._tokens[offsets].astype(np.int64))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def shuffled(places: NDArray[np.uint64], size: int, key: bytes) -> NDArray[np.uint64]:
    """Where a keyed permutation of range(size) takes `places`.

    A Feistel network over the next even power of two, walked on until inside (Black & Rogaway 2002): no
    table of all windows, and the same order with every version of every library.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    digest = hashlib.blake2b(key, digest_size=8 * _ROUNDS).digest()
    keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def once(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> half, values & mask
        for key in keys:
            left, right = right, left ^ (mixed(right + key) & mask)
        return (left << half) | right

    out = once(places)
    outside = out >= size
    while outside.any():
        out[outside] = once(out[outside])
        outside = out >= size
    return out


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
