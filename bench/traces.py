"""`python -m bench.traces FOLDER`: loss traces of small jobs, healthy and not, and how the detector of spikes does.

Each trace is a job of the trainer itself, on one thread, several at a time: `nano` on English-like bytes for 300
steps, with a line every step. Made once; what is there already is not made again. Kinds:

    healthy    over seeds, learning rates, schedules and batch sizes
    spike      healthy, and from a step on with a learning rate so many times higher
    poison     a part of the text is random bytes, or one line repeated
    stretch    the same, read in order
    diverging  a learning rate that is far too high from the start
"""

import argparse
import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import ours, report
from gptjobs import checkpoint
from gptjobs.config import Given, Plan, settle
from gptjobs.data import tokens
from gptjobs.diagnosis import Detector
from gptjobs.layout import Layout
from tests.conftest import english

STEPS = 300
PLANTED_AT = 180
CAUGHT_WITHIN = 20
"""steps after the loss has risen"""
ROSE = 0.1
"""part of the loss, by which the median of ten steps must have risen for a planted fault to have shown"""
OPTIONS = {"model": "nano", "n_layer": 2, "n_embd": 64, "block_size": 32, "log_interval": 1, "eval_tokens": 1024,
           "eval_interval": 10**6, "compile": "off", "precision": "float32", "warmup_steps": 20,
           "on_spike": "warn"}  # fmt: skip

RATES, BATCHES = (1e-4, 3e-4, 1e-3, 3e-3), (4, 8, 16)


@dataclass(frozen=True)
class Case:
    kind: str
    number: int
    values: dict[str, Any] = field(default_factory=dict)
    then: dict[str, Any] = field(default_factory=dict)
    """from PLANTED_AT on"""
    text: str = "clean"

    @property
    def name(self) -> str:
        return f"{self.kind}{self.number:03d}"


def cases() -> list[Case]:
    draw = random.Random(1)
    found = []
    for number in range(120):
        values = {
            "seed": number, "learning_rate": draw.choice(RATES), "batch_size": draw.choice(BATCHES),
            "schedule": draw.choice(["constant", "cosine", "linear"]), "dropout": draw.choice([0.0, 0.0, 0.1]),
        }  # fmt: skip
        found.append(Case("healthy", number, values))
    for number in range(60):
        rate = draw.choice([3e-4, 1e-3, 3e-3])
        values = {"seed": number, "learning_rate": rate, "batch_size": draw.choice(BATCHES), "schedule": "constant"}
        found.append(Case("spike", number, values, {"learning_rate": rate * draw.choice([30, 100, 300])}))
    for number in range(20):
        values = {"seed": number, "learning_rate": draw.choice([1e-3, 3e-3]), "batch_size": 8, "schedule": "constant"}
        found.append(Case("poison", number, values, text=draw.choice(["random", "repeated"])))
    for number in range(20):
        values = {
            "seed": number,
            "learning_rate": draw.choice([0.1, 0.3, 1.0]),
            "batch_size": 8,
            "schedule": "constant",
        }
        found.append(Case("diverging", number, values))
    for number in range(20):
        values = {
            "seed": number, "learning_rate": draw.choice([1e-3, 3e-3]), "batch_size": 16, "schedule": "constant",
            "data_order": "sequential",
        }  # fmt: skip
        found.append(Case("stretch", number, values, text=draw.choice(["random", "repeated"])))
    return found


def sources(layout: Layout) -> dict[str, Path]:
    """The texts: clean, and with a tenth of random bytes, or of one line again and again."""
    clean = english(60_000).encode()
    first, size = len(clean) // 3, len(clean) // 10
    bad = {
        "random": random.Random(1).randbytes(size).replace(b"\0", b"\1").decode("latin-1").encode(),
        "repeated": (b"all work and no play makes jack a dull boy\n" * size)[:size],
    }
    made = {"clean": clean, **{name: clean[:first] + each + clean[first:] for name, each in bad.items()}}
    folder = layout.root / "sources"
    folder.mkdir(exist_ok=True)
    found = {}
    for name, text in made.items():
        found[name] = folder / f"{name}.md"
        if not found[name].exists():
            found[name].write_bytes(text)
        tokens.prepare(layout, found[name], tokens.digest_of(found[name]), "bytes")
    return found


def make(layout: Layout, case: Case, source: Path) -> None:
    """Train it, unless its trace is there."""
    path = layout.root / f"{case.name}.json"
    if path.exists():
        return
    steps = PLANTED_AT if case.then else STEPS
    losses = _train(layout, case.name, source, {**OPTIONS, **case.values, "steps": steps}, None)
    if case.then:
        parent = checkpoint.counting(layout, case.name)[-1]
        losses += _train(layout, f"{case.name}-then", source, {**case.then, "steps": STEPS - steps}, parent)[1:]
    path.write_text(json.dumps({"kind": case.kind, "losses": losses}))


def _train(layout: Layout, job: str, source: Path, values: dict[str, Any], parent: Any) -> list[float | None]:
    given = {name: Given(value, "bench") for name, value in {**values, "data": f"sources/{source.name}"}.items()}
    digest = tokens.digest_of(source)
    settled = settle(given) if parent is None else settle(
        given, parent=parent.manifest.settled, parent_step=parent.manifest.step
    )  # fmt: skip
    plan = Plan(
        job=job, kind="train", settled=settled, data_name=source.stem, data_digest=digest,
        parent=parent.name if parent else None,
    )  # fmt: skip
    config = layout.config_file(job)
    config.parent.mkdir(exist_ok=True)
    config.write_text(json.dumps(plan.to_dict()))
    with (config.parent / "lines").open("wb") as lines:
        subprocess.run(
            ours.command(config, "cpu"), env=ours.environment(1), stdin=subprocess.DEVNULL, stdout=lines,
            stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    progress = [json.loads(line) for line in (config.parent / "lines").read_text().splitlines()]
    return [each["train_loss"] for each in progress if each["kind"] == "progress" and each["step"] > settled.start_step]


def rose_at(losses: list[float | None]) -> int | None:
    """The step at which the median of ten is, for the first time, a tenth above the lowest such median before."""
    values = [float("inf") if each is None else each for each in losses]
    lowest = float("inf")
    for step in range(10, len(values) + 1):
        middle = sorted(values[step - 10 : step])[5]
        if middle > (1 + ROSE) * lowest:
            return step
        lowest = min(lowest, middle)
    return None


def caught_at(losses: list[float | None]) -> int | None:
    detector = Detector()
    for step, loss in enumerate(losses, start=1):
        if detector.add(step, float("nan") if loss is None else loss):
            return step
    return None


def outliers_of(losses: list[float | None]) -> int:
    """Steps that are told as outliers, by their losses alone, which a trace has."""
    detector, count = Detector(), 0
    for step, loss in enumerate(losses, start=1):
        value, band = float("nan") if loss is None else loss, detector.band()
        count += band is not None and not band.holds(value, 0.0)
        detector.add(step, value)
    return count


def judge(traces: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row for each kind: how many showed a rise, of those how many were caught in time, how many alarms without, and
    how many steps in all were outliers. An alarm long before its rise is one without."""
    rows = []
    for kind in ("healthy", "spike", "poison", "stretch", "diverging"):
        mine = {name: each["losses"] for name, each in traces.items() if each["kind"] == kind}
        rises = {name: rose for name, losses in mine.items() if (rose := rose_at(losses)) is not None}
        alarms = {name: caught for name, losses in mine.items() if (caught := caught_at(losses)) is not None}
        in_time = [name for name, rose in rises.items() if name in alarms and abs(alarms[name] - rose) <= CAUGHT_WITHIN]
        false = [name for name, alarm in alarms.items() if name not in rises or alarm < rises[name] - CAUGHT_WITHIN]
        outliers = sum(outliers_of(losses) for losses in mine.values())
        rows.append([kind, *map(str, (len(mine), len(rises), len(in_time), len(false), outliers))])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.traces", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--at-once", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    layout = Layout(asked.folder.absolute())
    layout.make()
    texts = sources(layout)
    with ThreadPoolExecutor(asked.at_once) as pool:
        for done, case in enumerate(pool.map(lambda case: (make(layout, case, texts[case.text]), case)[1], cases()), 1):
            if done % 20 == 0:
                print(f"{done} traces, {case.name}", file=sys.stderr, flush=True)
    traces = {path.stem: json.loads(path.read_text()) for path in sorted(layout.root.glob("*.json"))}
    heads = ["traces", "made", "with a rise", "caught within 20 steps", "alarms without a rise", "outlier steps"]
    for half, name in ((0, "on which the thresholds were set"), (1, "held out")):
        chosen = {each: trace for each, trace in traces.items() if int(each[-3:]) % 2 == half}
        print(f"\n{name}:\n\n{report.table(heads, judge(chosen))}")


if __name__ == "__main__":
    main()
