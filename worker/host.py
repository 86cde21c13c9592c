"""This host: its devices, the slots it offers and the queues it listens to. Imports no torch.

`python -m worker.host` prints the slots, for `gptjobs doctor`.
"""

import platform
import shutil
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gptjobs.config import MOST_GPUS
from gptjobs.errors import UsageError
from gptjobs.job import ANY, DEVICES, queue_of
from gptjobs.layout import is_name

_NVIDIA_SMI_LIMIT_S = 20
_OOM_COUNTERS = ((Path("/proc/vmstat"), "oom_kill"), (Path("/sys/fs/cgroup/memory.events"), "oom_kill"))


@dataclass(frozen=True, kw_only=True)
class Host:
    worker: str
    """the worker's name: NAME@host"""
    slots: tuple[str, ...]
    """a device each: cuda:0, mps, cpu"""

    @property
    def queues(self) -> list[str]:
        """Also those of jobs that want several slots; of Metal there is one device, however many slots."""
        kind = self.slots[0].partition(":")[0]
        devices = len(set(self.slots)) if kind == "cuda" else len(self.slots)
        most = 1 if kind == "mps" else min(devices, MOST_GPUS)
        return [queue_of(each, gpus) for gpus in range(1, most + 1) for each in (kind, ANY)]


def this_host(name: str, device: str | None, slots: int | None) -> Host:
    """What this host offers: so many `slots` on each device, one unless told."""
    if not is_name(name):
        raise UsageError(f"'{name}' is no name for a worker", hint="letters, digits, dot, dash, underscore")
    device = device or _best_device()
    if device not in DEVICES:
        raise UsageError(f"no device is called '{device}'", hint=f"one of {', '.join(DEVICES)}")
    if device == "cuda":
        gpus = cuda_devices()
        if not gpus:
            raise UsageError("nvidia-smi shows no GPU on this host", hint="--device cpu")
        offered = tuple(f"cuda:{index}" for index in range(gpus)) * (slots or 1)
    else:
        offered = (device,) * (slots or 1)
    return Host(worker=f"{name}@{socket.gethostname()}", slots=offered)


def _best_device() -> str:
    if cuda_devices():
        return "cuda"
    on_apple_silicon = platform.system() == "Darwin" and platform.machine() == "arm64"
    return "mps" if on_apple_silicon else "cpu"


def cuda_devices() -> int:
    """How many GPUs nvidia-smi lists."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return 0
    try:
        listed = subprocess.run(
            [command, "-L"], capture_output=True, text=True, timeout=_NVIDIA_SMI_LIMIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def versions() -> dict[str, str]:
    """Those that a job's course may depend on."""
    found = {"python": platform.python_version()}
    with suppress(PackageNotFoundError):
        found["torch"] = version("torch")
    return found


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory, in this container or on this host; 0 where it does
    not tell."""
    for path, name in _OOM_COUNTERS:
        with suppress(OSError):
            for line in path.read_text().splitlines():
                if line.split()[0] == name:
                    return int(line.split()[1])
    return 0


if __name__ == "__main__":
    print(*this_host("here", None, None).slots)
