"""The device that a trainer computes on, and the arithmetic that gains there.

`python -m worker.trainer.device` computes a little on each of the best kind and prints them, for `gptjobs doctor`.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from gptjobs.errors import Refused

_PEAKS = {
    "B200": 2.25e15, "H200": 9.89e14, "H100 PCIe": 7.56e14, "H100": 9.89e14, "A100": 3.12e14, "L40S": 3.62e14,
    "L4": 1.21e14, "A10": 1.25e14, "RTX 4090": 1.65e14, "RTX 3090": 7.1e13,
}  # fmt: skip


@dataclass(frozen=True)
class Device:
    place: torch.device
    precision: str
    """float32 or bfloat16"""

    @property
    def peak(self) -> float | None:
        """Operations a second of products in bfloat16, by NVIDIA's data sheets; None where it is not known."""
        if self.place.type != "cuda" or self.precision != "bfloat16":
            return None
        name = torch.cuda.get_device_name(self.place)
        return next((peak for part, peak in _PEAKS.items() if part in name), None)

    def autocast(self) -> AbstractContextManager[object]:
        if self.precision == "bfloat16":
            return torch.autocast(self.place.type, dtype=torch.bfloat16)
        return nullcontext()

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy to the device without waiting for what it computes now."""
        if self.place.type == "cuda":
            return tensor.pin_memory().to(self.place, non_blocking=True)
        return tensor.to(self.place)

    def empty_cache(self) -> None:
        """Give back what torch keeps of the device's memory for later."""
        if self.place.type == "cuda":
            torch.cuda.empty_cache()
        elif self.place.type == "mps":
            torch.mps.empty_cache()


def best_available() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def devices_of(kind: str) -> list[str]:
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] if kind == "cuda" else [kind]


def check(name: str) -> None:
    """Raise RuntimeError where the device does not compute: a product and its gradient, of whole numbers, which are
    exact everywhere."""
    left = torch.arange(64.0, device=name).reshape(8, 8).requires_grad_()
    (left @ left).sum().backward()  # type: ignore[no-untyped-call]
    expected = torch.arange(64.0).reshape(8, 8)
    expected = expected.sum(0)[:, None] + expected.sum(1)[None, :]
    if left.grad is None or not torch.equal(left.grad.cpu(), expected):
        raise RuntimeError(f"{name} computes wrong: {left.grad}")


def of_rank(name: str, rank: int) -> str:
    """One of the devices that an attempt has: of `cuda:2,5` the rank 1 has `cuda:5`; of `cuda`, `cuda:1`."""
    kind, _, numbers = name.partition(":")
    if kind != "cuda":
        return name
    return f"cuda:{numbers.split(',')[rank] if numbers else rank}"


def open_device(name: str, precision: str) -> Device:
    """The device called `name` (cuda, cuda:1, mps, cpu). Raises Refused where it is not here.

    `auto` precision is bfloat16 on CUDA devices that compute in it, else float32: on a CPU and on Metal no
    gain was measured.
    """
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Refused("this host has no CUDA device that torch can use", hint="--device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise Refused("this host has no Metal device that torch can use", hint="--device cpu")
    if device.type == "cuda":
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise Refused(f"this host has no {name}", hint="fewer --gpus")
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
    if precision == "auto":
        gains = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if gains else "float32"
    return Device(device, precision)


if __name__ == "__main__":
    for name in devices_of(best_available()):
        check(name)
        print(name)
