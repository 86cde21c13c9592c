"""Which windows of the data a step trains on, and which ones an evaluation reads.

The data's last tenth is held out. The rest is cut into windows of `block_size` tokens; each is seen once an
epoch, in an order that is a pure function of (seed, epoch, block size), or one after the other. So the place in the
data is one number, the windows seen, and another batch size neither repeats nor skips one. Another seed or block size
is another order, which is begun with its first window, also where a job before had begun it. Windows that are left out
keep their place in the order, and count as seen.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gptjobs import ranges
from gptjobs.checkpoint import Attempt
from gptjobs.config import HELD_OUT_PART, SEQUENTIAL, SHUFFLED, Plan
from gptjobs.errors import Refused
from gptjobs.layout import Layout

_ROUNDS = 6
_LOOKS_AHEAD = 256
"""windows at a time, in search of those that are not left out"""

Batch = tuple[torch.Tensor, torch.Tensor]


class Following(NamedTuple):
    """The next windows to train on: the tokens they begin at, and the windows seen after them."""

    starts: NDArray[np.int64]
    end: int


class Batches:
    """Windows of one token file at one block size. Left out are those with a token of the ranges `skip_tokens`, and
    those at the places `skips` of the order; a range ends before its last."""

    def __init__(
        self, file: Path, block_size: int, seed: int, order: str = SHUFFLED,
        skip_tokens: Sequence[ranges.Range] = (), skips: Sequence[Sequence[int]] = (),
    ) -> None:  # fmt: skip
        self._tokens: NDArray[np.uint16] = np.memmap(file, dtype="<u2", mode="r")
        self._block = block_size
        self._seed = seed
        self._order, self._skip_tokens, self._skips = order, sorted(skip_tokens), skips
        count = len(self._tokens)
        self._held_out = count - count // HELD_OUT_PART
        self.windows = (self._held_out - 1) // block_size
        self._refuse_if_short(block_size)
        if self._first_kept() >= self.windows:
            raise Refused("--skip-tokens leaves nothing to train on", hint="fewer of them")

    @classmethod
    def of_plan(cls, layout: Layout, plan: Plan, attempt: Attempt | None) -> "Batches":
        """As an attempt of the job reads them."""
        train = plan.settled.train
        file = layout.token_file(plan.data_name, plan.data_digest, train.encoding)
        skip_tokens = ranges.several(train.skip_tokens)
        return cls(file, train.block_size, train.seed, train.data_order, skip_tokens, attempt.skips if attempt else ())

    def _refuse_if_short(self, block_size: int) -> None:
        count = len(self._tokens)
        if self.windows < 1 or count - self._held_out <= block_size:
            raise Refused(
                f"the data has {count} tokens; at block size {block_size} it needs at least "
                f"{HELD_OUT_PART * (block_size + 1)}, as a tenth is held out for validation",
                hint="more data, or a smaller --block-size",
            )

    def following(self, seen: int, count: int) -> Following:
        """The `count` windows to train on after the first `seen` of the order."""
        if not self.leaves_out:
            return Following(self.at(seen, seen + count), seen + count)
        found: list[int] = []
        while True:
            seen = self._behind_skips(seen)
            places = np.arange(seen, seen + max(count, _LOOKS_AHEAD))
            starts = self.at(seen, int(places[-1]) + 1)
            kept = self._is_kept(places, starts)
            wanted = np.flatnonzero(kept)[: count - len(found)]
            found += starts[wanted].tolist()
            if len(found) == count:
                return Following(np.array(found, dtype=np.int64), int(places[wanted[-1]]) + 1)
            seen = int(places[-1]) + 1

    def kept(self, first: int, last: int) -> NDArray[np.int64]:
        """As `at`, without the windows that are left out."""
        places, starts = np.arange(first, last), self.at(first, last)
        return starts[self._is_kept(places, starts)]

    def _is_kept(self, places: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.bool_]:
        kept = ~self._is_left_out(starts)
        for first, last in self._skips:
            kept &= (places < first) | (places >= last)
        return kept

    def _first_kept(self) -> int:
        """The first window of the data that no range of tokens leaves out."""
        window = 0
        for first, last in self._skip_tokens:  # in order
            if first <= (window + 1) * self._block and last > window * self._block:
                window = -(-last // self._block)
        return window

    @property
    def leaves_out(self) -> bool:
        return bool(self._skip_tokens or self._skips)

    def _behind_skips(self, place: int) -> int:
        for first, last in sorted((first, last) for first, last in self._skips):
            if first <= place < last:
                place = last
        return place

    def _is_left_out(self, starts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of windows: whether one of their tokens, or the target of the last, is in a range that is left out."""
        left_out = np.zeros(len(starts), dtype=bool)
        for first, last in self._skip_tokens:
            left_out |= (starts < last) & (starts + self._block >= first)
        return left_out

    def read(self, starts: NDArray[np.int64]) -> Batch:
        """The windows that begin there: tokens and the tokens after them, [windows, block]."""
        return self._gather(starts, self._block)

    def batch(self, seen: int, count: int) -> Batch:
        """The `count` windows to train on after the first `seen`."""
        return self.read(self.following(seen, count).starts)

    def at(self, first: int, last: int) -> NDArray[np.int64]:
        """The tokens that the windows at these places of the order begin at, left out or not."""
        places = np.arange(first, last, dtype=np.uint64)
        epochs, within = np.divmod(places, np.uint64(self.windows))
        if self._order == SEQUENTIAL:
            return within.astype(np.int64) * self._block
        chosen = np.empty(len(places), dtype=np.uint64)
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
