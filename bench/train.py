"""`python -m bench.train`: a step of our trainer beside what people would train a GPT-2 with instead.

Every contender runs in a process of its own, one at a time; in each round all of them, in an order drawn by chance. A
ratio compares two steps of one round, so that a machine that is slower for a while is so for both. The table for
docs/performance.md goes to standard output, what is being measured to standard error.

On a machine with CUDA the shapes are those of a GPU and the step's part of the device's arithmetic is told too. That
branch was written without a GPU at hand: nobody has seen it work.
"""

import argparse
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench import ours, report
from bench.contenders import Contender, Shape, contenders, large, small
from bench.measure import Effort, Failed, Sample, measure
from bench.report import Results

SHAPES = [small(12, 64), large(4, 128), large(16, 128)]
GRID = [
    *(small(batch, block) for batch in (1, 4, 16) for block in (64, 128, 256)),
    *(large(batch, block) for batch in (1, 4, 16) for block in (64, 128, 256) if batch * block <= 2048),
]
CUDA = [large(32, 128, "cuda"), large(64, 1024, "cuda")]
SHORT = ("nanoGPT", "gptjobs", "floor")
SHORT_EFFORT = Effort(warm_steps=1, seconds=3.0, lines=1)
SHORT_MINUTES = 4.5


def race(
    shapes: Sequence[Shape], entrants: Sequence[Contender], folder: Path, threads: int, effort: Effort, rounds: int,
    minutes: float,
) -> Results:  # fmt: skip
    """Each shape in the first round, and in a later one where it will end within `minutes` of the start if it takes as
    long as before. A contender that fails at a shape is left out there from then on."""
    results, chance = Results(), random.Random(1)
    until, took_s = time.monotonic() + 60 * minutes, dict.fromkeys(shapes, -math.inf)
    for round_ in range(rounds):
        for shape in shapes:
            began = time.monotonic()
            if began + took_s[shape] > until:
                continue
            for contender in chance.sample(entrants, len(entrants)):
                key = (shape.title, contender.name)
                if key in results.failed:
                    continue
                try:
                    sample = _measure(contender, shape, folder, threads, effort)
                except Failed as error:
                    results.failed[key] = str(error)
                    _tell(f"{shape.title}: {contender.name} failed: {error}")
                else:
                    results.samples.setdefault(key, {})[round_] = sample
                    _tell(f"round {round_ + 1}: {shape.title}: {contender.name}: {sample}")
            took_s[shape] = time.monotonic() - began
    return results


def _measure(contender: Contender, shape: Shape, folder: Path, threads: int, effort: Effort) -> Sample:
    """With a cache of compiled code of its own, empty in the first round."""
    cache = folder / "compiled" / contender.slug / shape.job
    environment = {**ours.environment(threads), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    return measure(contender.launch(shape, folder), environment, effort)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.train", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT; else NANOGPT_DIR", metavar="DIR")
    parser.add_argument("--short", action="store_true", help="five minutes: without compilation and transformers")
    parser.add_argument("--grid", action="store_true", help="many batch and block sizes; takes hours")
    parser.add_argument("--shape", action="append", help="only this one, as 124M-b4-t128", metavar="NAME")
    parser.add_argument("--contender", action="append", help="only these, as 'gptjobs'", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, help="of steps to time in a process")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    clone = report.clone_of_nanogpt(asked.nanogpt)
    on_cuda = torch.cuda.is_available()
    names = asked.contender or (SHORT if asked.short else None)
    entrants = [
        each
        for each in contenders(clone)
        if (names is None or each.name in names) and not (on_cuda and each.name == "floor")
    ]
    shapes = [
        each
        for each in (CUDA if on_cuda else GRID if asked.grid else SHAPES)
        if not asked.shape or each.job in asked.shape
    ]
    effort = SHORT_EFFORT if asked.short else Effort()
    if asked.seconds is not None:
        effort = replace(effort, seconds=asked.seconds, lines=1)
    folder = Path(tempfile.mkdtemp())
    try:
        minutes = SHORT_MINUTES if asked.short else math.inf
        results = race(shapes, entrants, folder, asked.threads, effort, asked.rounds, minutes)
    finally:
        shutil.rmtree(folder)
    print(report.machine(asked.threads, report.rivals(clone)))
    for shape in shapes:
        print(f"\n{shape.title}: {results.rounds_of(shape)} rounds\n")
        print(report.table_of_speed(shape, [each.name for each in entrants], results))


if __name__ == "__main__":
    main()
