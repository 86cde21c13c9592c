"""What a host is like at a moment: heat, memory, load, power, and what else it is busy with.

Each fact is there only where it can be had, and no question takes longer than a second or two; none is asked in a
thread that something waits for. Of other processes only names are told: their arguments may hold secrets.
"""

import ctypes
import math
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psutil

from gptjobs.job import plain
from gptjobs.presence import Device
from gptjobs.settings import cores
from worker.growth import gigabytes

BUSY_S = 0.5
"""over which the other processes are measured"""
BUSIEST = 3
BUSY_PERCENT = 5.0
"""of a core, from which on a process is told"""
ASK_LIMIT_S = 2.0
NAME_LENGTH = 40
_MEANT_CELSIUS = (1.0, 150.0)
"""Sensors that are not there tell others."""
_UNKNOWN = (psutil.Error, OSError, subprocess.SubprocessError, AttributeError, LookupError, ValueError, RuntimeError)
"""What asking a host ends with that cannot tell."""
_GPU_FIELDS = ("temperature.gpu", "utilization.gpu", "clocks.sm", "clocks.max.sm", "clocks_throttle_reasons.active")
_THROTTLED = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power brake",
}  # fmt: skip
"""bits of NVML's throttle reasons that slow training down"""


def condition(trainer: int) -> dict[str, Any]:
    """The host's facts by name, as JSON has them; sizes in bytes, temperatures in °C."""
    asked: dict[str, Callable[[], Any]] = {
        "memory": _memory,
        "trainer_memory": lambda: memory_of(trainer),
        "load": lambda: [round(each, 2) for each in psutil.getloadavg()],
        "cores": psutil.cpu_count,
        "cpu_mhz": _cpu_mhz,
        "temperatures": _temperatures,
        "battery": _battery,
        "thermal": _thermal_pressure,
        "gpus": _gpus,
        "busiest": lambda: _busiest(trainer),
    }
    found = {}
    for name, ask in asked.items():
        with suppress(*_UNKNOWN):
            found[name] = ask()
    return {name: value for name, value in found.items() if value not in (None, {}, [])}


def devices(slots: Sequence[str]) -> list[Device]:
    """What is behind a worker's slots, each device once."""
    kind = slots[0].partition(":")[0]
    found: list[Device] = []
    with suppress(*_UNKNOWN):
        found = _cuda_devices() if kind == "cuda" else [_host_device(kind)]
    told = {each.name: each for each in found}
    return [told.get(each, Device(name=each)) for each in dict.fromkeys(slots)]


def _cuda_devices() -> list[Device]:
    told = _answer("nvidia-smi", "--query-gpu=index,name,memory.total,memory.free", "--format=csv,noheader,nounits")
    rows = [[each.strip() for each in line.split(",")] for line in told.splitlines()]
    return [
        Device(name=f"cuda:{index}", product=product, memory=_mebibytes(memory), memory_free=_mebibytes(free))
        for index, product, memory, free in rows
    ]


def _mebibytes(text: str) -> int | None:
    count = _whole(text)
    return None if count is None else count << 20


def _host_device(kind: str) -> Device:
    memory = psutil.virtual_memory()
    product = _answer("sysctl", "-n", "machdep.cpu.brand_string").strip() if kind == "mps" else f"{cores()} cores"
    return Device(name=kind, product=product, memory=memory.total, memory_free=memory.available)


def host_memory() -> tuple[int | None, int | None]:
    """In bytes: in all, and free."""
    with suppress(*_UNKNOWN):
        memory = psutil.virtual_memory()
        return memory.total, memory.available
    return None, None


def in_words(host: dict[str, Any]) -> str:
    """The facts that most likely say why training is slow."""
    parts = [f"{max(host['temperatures'].values()):.0f} °C"] if "temperatures" in host else []
    for gpu in host.get("gpus", []):
        throttled = f", throttled by {' and '.join(gpu['throttled'])}" if gpu["throttled"] else ""
        parts.append(f"GPU {gpu['index']} {gpu['celsius']:.0f} °C{throttled}")
    if memory := host.get("memory"):
        swap = f", {gigabytes(memory['swap_used'])} swapped" if memory["swap_used"] else ""
        parts.append(f"{gigabytes(memory['available'])} of {gigabytes(memory['total'])} memory left{swap}")
    if "load" in host and "cores" in host:
        parts.append(f"load {host['load'][0]:.1f} on {host['cores']} cores")
    if not host.get("battery", {}).get("plugged", True):
        parts.append(f"on battery, {host['battery']['percent']}%")
    if host.get("thermal", {}).get("CPU_Speed_Limit", 100) < 100:
        parts.append(f"CPU held to {host['thermal']['CPU_Speed_Limit']}% for its heat")
    busiest = ", ".join(f"{each['name']} {each['percent']}%" for each in host.get("busiest", []))
    parts.append(f"busiest besides: {busiest}" if busiest else "nothing else is busy")
    return "; ".join(parts)


def memory_of(trainer: int) -> int | None:
    """Bytes that a process and those it started have to themselves; None where that is not told. Pages of files, as
    the data's, are none."""
    with suppress(*_UNKNOWN):
        first = psutil.Process(trainer)
        return sum(_own_memory(each) for each in (first, *first.children(recursive=True)))
    return None


def available_part() -> float:
    memory = psutil.virtual_memory()
    return float(memory.available / memory.total)


def _own_memory(process: psutil.Process) -> int:
    if platform.system() == "Darwin":
        return _footprint(process.pid)
    with suppress(psutil.NoSuchProcess):
        held = process.memory_info()
        return int(held.rss - getattr(held, "shared", 0))
    return 0


def _footprint(pid: int) -> int:
    """What Activity Monitor calls a process's memory. What is resident would lack what Metal holds and what is
    compressed. From proc_pid_rusage, whose struct rusage_info_v0 has sixteen bytes, seven numbers, then this one."""
    found = (ctypes.c_uint64 * 64)()
    libproc = ctypes.CDLL("/usr/lib/libproc.dylib")
    return int(found[2 + 7]) if libproc.proc_pid_rusage(pid, 0, ctypes.byref(found)) == 0 else 0


def _memory() -> dict[str, int]:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return {
        "total": memory.total, "available": memory.available, "swap_total": swap.total, "swap_used": swap.used,
    }  # fmt: skip


def _cpu_mhz() -> dict[str, int] | None:
    found = psutil.cpu_freq()
    return {"now": round(found.current), "highest": round(found.max)} if found else None


def _temperatures() -> dict[str, float]:
    """The hottest of each sensor chip; macOS tells none."""
    low, high = _MEANT_CELSIUS
    chips = {
        name: [each.current for each in sensors if each.current and low <= each.current <= high]
        for name, sensors in psutil.sensors_temperatures().items()
    }
    return {name: round(max(found), 1) for name, found in chips.items() if found}


def _battery() -> dict[str, Any] | None:
    found = psutil.sensors_battery()
    return {"percent": round(found.percent), "plugged": bool(found.power_plugged)} if found else None


def _thermal_pressure() -> dict[str, int]:
    """On macOS, to which part of its speed heat holds the CPU: CPU_Speed_Limit, and what else `pmset` counts."""
    if platform.system() != "Darwin":
        return {}
    return {name: int(value) for name, value in re.findall(r"(\w+)\s*=\s*(\d+)", _answer("pmset", "-g", "therm"))}


def _gpus() -> list[dict[str, Any]]:
    if shutil.which("nvidia-smi") is None:
        return []
    fields = ",".join(("index", *_GPU_FIELDS))
    told = _answer("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    return [_gpu(line) for line in told.splitlines()]


def _gpu(line: str) -> dict[str, Any]:
    index, celsius, busy, clock, highest, bits = (each.strip() for each in line.split(","))
    reasons = int(bits, 16)
    return {
        "index": int(index),
        "celsius": int(celsius),
        "busy_percent": _whole(busy),
        "mhz": _whole(clock),
        "highest_mhz": _whole(highest),
        "throttled": [words for bit, words in _THROTTLED.items() if reasons & bit],
    }


def _whole(text: str) -> int | None:
    """None for what a device does not tell: [N/A]."""
    return int(text) if text.isdigit() else None


def _answer(*command: str) -> str:
    told = subprocess.run(command, capture_output=True, text=True, timeout=ASK_LIMIT_S, check=True)
    return told.stdout


def _busiest(trainer: int) -> list[dict[str, Any]]:
    """Processes besides the trainer's, by the part of a core that they use now."""
    own = {trainer, *(each.pid for each in psutil.Process(trainer).children(recursive=True))}
    others = [each for each in psutil.process_iter() if each.pid not in own]
    for each in others:
        _busy(each)  # from here on it counts
    time.sleep(BUSY_S)
    busy = sorted(((_busy(each), each) for each in others), key=lambda found: -found[0])[:BUSIEST]
    return [{"name": _name(each), "percent": round(percent)} for percent, each in busy if percent >= BUSY_PERCENT]


def _busy(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        percent = float(process.cpu_percent())
        return percent if math.isfinite(percent) else 0.0
    return 0.0


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return plain(process.name())[:NAME_LENGTH]
    return "?"
