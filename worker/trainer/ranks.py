"""The processes that train one job together, each on a device of its own: which part of a batch is whose, and what
they tell each other.

All have the same weights, and make the same update from the sum of their gradients. It is taken once an update, when
all micro-batches are done, as data-parallel training without a wrapper around the model: the tables of this model add
to their gradients themselves (see tables.py), where a wrapper's hooks would not see it.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from worker.child import log
from worker.trainer.device import Device
from worker.trainer.launch import PeerLost
from worker.trainer.memory import first_line
from worker.trainer.shards import is_split

BUCKET_BYTES = 1 << 26
"""of gradients that are sent together; a larger one goes alone"""
_LIMIT = timedelta(days=30)
"""for the others to come to the same place, one of which may save for hours: the supervisor tells what hangs"""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process is number `rank` of `size`."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Whether this one reports, logs and saves for all."""
        return self.rank == 0

    def part(self, count: int) -> range:
        """Of so many things in order, those of this rank; the first ranks have one more where it does not come out
        even."""
        each, more = divmod(count, self.size)
        first = self.rank * each + min(self.rank, more)
        return range(first, first + each + (self.rank < more))

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor its sum over all ranks; gradients of a model that is split are that already."""
        if self.size == 1:
            return
        for bucket in _buckets([each for each in tensors if not is_split(each)]):
            flat = bucket[0] if len(bucket) == 1 else torch.cat([each.flatten() for each in bucket])
            dist.all_reduce(flat)
            if len(bucket) > 1:
                parts = torch.split(flat, [each.numel() for each in bucket])
                torch._foreach_copy_(bucket, [part.view_as(each) for part, each in zip(parts, bucket, strict=True)])

    def any(self, *flags: bool) -> list[bool]:
        """Each of them is true where it is for one rank. Asks no device, so none is waited for."""
        if self.size == 1:
            return list(flags)
        said = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return [bool(each) for each in said.tolist()]


ALONE = Ranks(rank=0, size=1)


def join(rank: int, size: int, meeting: Path, device: Device) -> Ranks:
    """Find the other ranks, which all name the same file."""
    # of all networks only the host's own, whatever its name resolves to; NCCL and gloo look for these in C
    own = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.putenv("GLOO_SOCKET_IFNAME", own)
    os.putenv("NCCL_SOCKET_IFNAME", own)
    if device.place.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // size))
    elif device.place.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # else a device mesh would choose another device than ours
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.place.type == "cuda" else "gloo",
        store=dist.FileStore(str(meeting), size),  # type: ignore[attr-defined]  # it is documented
        rank=rank,
        world_size=size,
        timeout=_LIMIT,
    )
    return Ranks(rank=rank, size=size)


@contextmanager
def told() -> Iterator[None]:
    """Raise PeerLost for what torch raises where ranks do something together and one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        log(f"another rank is gone: {first_line(error)}")
        raise PeerLost from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for each in tensors:
        if bucket and size + each.nbytes > BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(each)
        size += each.nbytes
    if bucket:
        yield bucket
