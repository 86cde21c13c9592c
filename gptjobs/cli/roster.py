"""The table of `gptjobs worker list`: a line a worker, and a further one for each further device or job of it."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, zip_longest
from typing import TYPE_CHECKING, Any

from gptjobs.cli import output
from gptjobs.job import Job

if TYPE_CHECKING:
    from gptjobs.presence import Device, Presence

HEADERS = ("NAME", "DEVICE", "FREE", "BUSY", "JOBS", "SEEN", "GPTJOBS", "TORCH", "PYTHON")
LEAST_COLUMNS = 6
"""up to SEEN"""
PRODUCT_LENGTH = 24
JOB_LENGTH = 16


def as_dict(worker: "Presence", seen_s: float | None, jobs: Mapping[str, Job]) -> dict[str, Any]:
    training = [jobs[each].to_dict() for each in worker.jobs if each in jobs]
    shown = ("id", "name", "state", "step", "end_step")
    return {
        **worker.to_dict(),
        "seen_s": seen_s,
        "training": [{name: each[name] for name in shown} for each in training],
    }


def table(workers: Sequence["Presence"], seen: Sequence[float | None], jobs: Mapping[str, Job]) -> None:
    """On a terminal without room for all columns the last ones are left out: --json has them."""
    found = [HEADERS, *(line for each in zip(workers, seen, strict=True) for line in lines(*each, jobs))]
    widths = [max(map(len, column)) + len("  ") for column in zip(*found, strict=True)]
    room = shutil.get_terminal_size().columns + len("  ") if sys.stdout.isatty() else sum(widths)
    fit = max(LEAST_COLUMNS, sum(width <= room for width in accumulate(widths)))
    headers, *rows = (line[:fit] for line in found)
    output.table(headers, rows, right=(HEADERS.index("SEEN"),))


def lines(worker: "Presence", seen_s: float | None, jobs: Mapping[str, Job]) -> Iterator[tuple[str, ...]]:
    from gptjobs.presence import Device

    told = {each.name: each for each in worker.devices}
    devices = [told.get(each, Device(name=each)) for each in dict.fromkeys(worker.slots)]
    names = [_job(each, jobs.get(each)) for each in worker.jobs] or ["-"]
    torch = worker.versions.get("torch", "-").partition("+")[0]
    versions = (worker.version, torch, worker.versions.get("python", "-"))
    seen = "-" if seen_s is None else f"{seen_s:.0f} s"
    for number, (device, job) in enumerate(zip_longest(devices, names)):
        place = (_device(device), _memory(device)) if device else ("", "")
        if number:
            yield ("", *place, "", job or "", "", "", "", "")
        else:
            yield (worker.name, *place, f"{worker.busy}/{len(worker.slots)}", job or "", seen, *versions)


def _job(id: str, job: Job | None) -> str:
    """By its name, with how far it is."""
    if job is None:
        return id
    called = _cut(job.spec.called, JOB_LENGTH)
    step, end = job.progress.get("step"), job.progress.get("end_step")
    return called if step is None or end is None else f"{called} {100 * step // end}%"


def _device(device: "Device") -> str:
    return f"{device.name} {_cut(device.product, PRODUCT_LENGTH)}" if device.product else device.name


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _memory(device: "Device") -> str:
    """`139/151 GB`: free, and in all."""
    if device.memory is None or device.memory_free is None:
        return "-"
    return f"{device.memory_free / 1e9:.0f}/{device.memory / 1e9:.0f} GB"
