"""Dropout whose masks are a pure function of (seed, step, the window's place in the update, the site in the model).

So there is no random state that a checkpoint could forget; the split of an update into micro-batches, or over GPUs,
changes no mask; a block that is computed again draws the same; and all devices draw alike. Each element's bits are a
hash of its index within the window, keyed by all the rest.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worker.trainer.batches import mixed

_FIRST_FACTOR, _SECOND_FACTOR = 0x7FEB352D, 0x846CA68B - (1 << 32)
"""of lowbias32, the second one as the signed word that torch has"""
_WEYL = 0x9E3779B97F4A7C15
"""the step of splitmix64's counter (Steele, Lea & Flood 2014)"""


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """The masks of some windows of an update. `part` of the activations is dropped; `keys` [sites, windows, 2] are
    two words for each site and window."""

    part: float
    keys: Tensor

    @classmethod
    def drawn(cls, part: float, *, seed: int, step: int, places: range, sites: int, device: torch.device) -> "Dropout":
        """For the windows at these places of the update that makes step `step` + 1."""
        base = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()
        counted = np.arange(sites, dtype=np.uint64)[:, None] << np.uint64(32) | np.asarray(places, dtype=np.uint64)
        words = mixed(mixed(counted * np.uint64(_WEYL)) + np.frombuffer(base, dtype="<u8")).astype("<u8").view("<i4")
        return cls(part=part, keys=torch.from_numpy(words.reshape(sites, len(places), 2)).to(device))

    def apply(self, x: Tensor, site: int) -> Tensor:
        """x [windows, ...] with the dropped ones 0 and the kept ones scaled, so that the mean stays."""
        keys = self.keys[site]
        bits = _hashed(torch.arange(x[0].numel(), dtype=torch.int32, device=x.device), keys[:, :1], keys[:, 1:])
        is_kept = bits >= round(self.part * 2**32) - 2**31
        return x * (is_kept.view(x.shape).to(x.dtype) / (1.0 - self.part))


def _hashed(index: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Words [windows, n] of an index [n] and two keys a window: lowbias32 (Wellons 2018) with a key on either side of
    its first product. In torch's signed words, whose shifts have to be cut to the bits that are left."""
    bits = index + first
    bits = bits ^ ((bits >> 16) & 0xFFFF)
    bits = bits * _FIRST_FACTOR ^ second
    bits = bits ^ ((bits >> 15) & 0x1FFFF)
    bits = bits * _SECOND_FACTOR
    return bits ^ ((bits >> 16) & 0xFFFF)
