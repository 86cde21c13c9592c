"""What the benches print: the machine, and tables in Markdown."""

import importlib.metadata
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.contenders import Shape
from bench.measure import Sample

PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
"""dense bfloat16 operations a second, from NVIDIA's data sheets (SXM)"""

Samples = Mapping[int, Sample]
"""by round"""


@dataclass(kw_only=True)
class Results:
    """What was measured, by the shape's title and the contender's name."""

    samples: dict[tuple[str, str], dict[int, Sample]] = field(default_factory=dict)
    failed: dict[tuple[str, str], str] = field(default_factory=dict)

    def rounds_of(self, shape: Shape) -> int:
        return max((len(each) for (title, _), each in self.samples.items() if title == shape.title), default=0)


def clone_of_nanogpt(asked: Path | None) -> Path | None:
    """Where the user says that it is; with neither option nor variable its rows are left out."""
    named = asked or os.environ.get("NANOGPT_DIR")
    return Path(named).resolve(strict=True) if named else None


def machine(threads: int, rivals: str = "") -> str:
    """Where, with what and how it was measured, as a list."""
    load, _, _ = os.getloadavg()
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    lines = [
        f"machine: {_processor()}, {os.cpu_count()} cores{device}; {threads} threads; load at the end {load:.1f}",
        f"versions: Python {platform.python_version()}, torch {torch.__version__}{rivals}",
        f"command: `{shlex.join(['python', '-m', f'bench.{Path(sys.argv[0]).stem}', *sys.argv[1:]])}`",
    ]
    return "\n".join(f"- {line}" for line in lines)


def rivals(clone: Path | None) -> str:
    return f", transformers {importlib.metadata.version('transformers')}, nanoGPT {_commit(clone)}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit(clone: Path | None) -> str:
    if clone is None:
        return "left out, as NANOGPT_DIR names no clone of it"
    asked = ["git", "-C", str(clone), "log", "-1", "--format=%h of %cs"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "from a copy without its history"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def table_of_speed(shape: Shape, names: Sequence[str], results: Results) -> str:
    """The first of the names is what the others are compared with."""
    on_cuda = shape.device == "cuda"
    heads = ["trainer", "ms a step", f"of {names[0]}'s", "least to most", "CPU ms a step"]
    heads += ["peak MB of the host" if on_cuda else "peak MB", "s to the first step", "in later rounds"]
    heads += ["MFU"] * on_cuda
    reference = results.samples.get((shape.title, names[0]), {})
    rows = []
    for name in names:
        key = (shape.title, name)
        if key in results.failed:
            row = [name, f"failed: {results.failed[key]}"]
        else:
            row = [name, *_cells(results.samples[key], reference)]
            row += [_mfu(shape, results.samples[key])] if on_cuda else []
        rows.append(row + [""] * (len(heads) - len(row)))
    return table(heads, rows)


def ratios(samples: Samples, reference: Samples) -> list[float]:
    """Of the step's time to the reference's in the same round, smallest first."""
    return sorted(samples[each].step_s / reference[each].step_s for each in samples.keys() & reference.keys())


def _cells(samples: Samples, reference: Samples) -> list[str]:
    found = [samples[each] for each in sorted(samples)]
    compared = ratios(samples, reference)
    return [
        f"{1000 * statistics.median(each.step_s for each in found):,.1f}",
        f"{statistics.median(compared):.3f}" if compared else "?",
        f"{compared[0]:.3f} to {compared[-1]:.3f}" if len(compared) > 1 else "",
        f"{1000 * statistics.median(each.cpu_s for each in found):,.1f}",
        f"{max(each.peak_bytes for each in found) / 1e6:,.0f}",
        f"{found[0].first_s:.1f}",
        f"{statistics.median(each.first_s for each in found[1:]):.1f}" if len(found) > 1 else "",
    ]


def _mfu(shape: Shape, samples: Samples) -> str:
    """The part that is used of what the device could compute; ? for a device whose peak is not known here."""
    device = torch.cuda.get_device_name()
    peak = next((each for name, each in PEAK_FLOPS.items() if name in device), None)
    step_s = statistics.median(each.step_s for each in samples.values())
    return f"{shape.flops / step_s / peak:.1%}" if peak else "?"
