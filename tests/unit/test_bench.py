"""What the benches make of lines, processes and samples."""

import json
import os
import sys
from pathlib import Path

import pytest

from bench import ours, report, startup
from bench.contenders import Launch, small, steps_made
from bench.measure import Effort, Failed, Sample, measure
from bench.report import Results
from gptjobs import planning, progress
from gptjobs.checkpoint import Attempt
from gptjobs.config import ModelConfig, Plan, TrainConfig
from gptjobs.layout import Layout
from gptjobs.progress import Progress, StageBegan

STEPS = """
import time

def compute(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

memory = bytearray(50_000_000)
for made, seconds in ((0, 0), (10, 1.0), (20, 0.1), (30, 0.1)):
    compute(seconds)
    print(f"made {made}", flush=True)
time.sleep(10_000)
"""


def sample(step_s: float, first_s: float = 1.0) -> Sample:
    return Sample(step_s=step_s, cpu_s=2 * step_s, peak_bytes=100_000_000, first_s=first_s)


def script(folder: Path, text: str) -> Launch:
    return Launch(command=[sys.executable, "-c", text], folder=folder)


def ours_said(step: int, seconds: float = 0.0) -> str:
    line = Progress(
        step=step, end_step=9, tokens=0, train_loss=1.0, learning_rate=1.0, grad_norm=1.0, tokens_per_s=1.0, eta_s=1.0
    )  # fmt: skip
    return progress.encode(line, seconds=seconds)


def test_the_lines_of_every_contender_tell_the_steps_made() -> None:
    assert steps_made("iter 20: loss 4.2, time 3.00ms, mfu -100.00%") == 21
    assert steps_made("made 30, loss 4.2000") == 30
    assert steps_made(ours_said(40)) == 40
    assert steps_made("step 0: train loss 10.9, val loss 10.9") is None
    assert steps_made(progress.encode(StageBegan(stage="training"), seconds=0.0)) is None


def test_a_contender_is_timed_between_its_lines_after_the_first_steps_and_then_killed(tmp_path: Path) -> None:
    found = measure(script(tmp_path, STEPS), dict(os.environ), Effort(warm_steps=10, seconds=0.0, lines=2))
    assert 0.008 <= found.cpu_s <= 0.02
    assert found.step_s >= 0.009
    assert found.first_s > 0
    assert found.peak_bytes > 50_000_000


def test_a_contender_that_ends_too_early_says_why(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"^ValueError: no such device$"):
        measure(script(tmp_path, "print('made 1'); raise ValueError('no such device')"), dict(os.environ), Effort())


def test_ratios_compare_steps_of_the_same_round_only() -> None:
    assert report.ratios({0: sample(1.0), 2: sample(3.0)}, {0: sample(2.0), 1: sample(100.0), 2: sample(2.0)}) == [
        0.5,
        1.5,
    ]


def test_the_table_has_the_median_ratio_its_spread_and_what_failed() -> None:
    shape = small(12, 64)
    results = Results(
        samples={
            (shape.title, "nanoGPT"): {0: sample(0.02), 1: sample(0.04), 2: sample(0.02)},
            (shape.title, "gptjobs"): {0: sample(0.01, 9.0), 1: sample(0.03), 2: sample(0.03, 3.0)},
        },
        failed={(shape.title, "floor"): "RuntimeError: no"},
    )
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in report.table_of_speed(shape, ["nanoGPT", "gptjobs", "floor"], results).splitlines()
    ]
    assert rows[0][:4] == ["trainer", "ms a step", "of nanoGPT's", "least to most"]
    assert rows[3] == ["gptjobs", "30.0", "0.750", "0.500 to 1.500", "60.0", "100", "9.0", "2.0"]
    assert rows[4][:3] == ["floor", "failed: RuntimeError: no", ""]
    assert len({len(row) for row in rows}) == 1
    assert results.rounds_of(shape) == 3


def test_the_seconds_before_the_first_step_are_told_apart_by_what_ended_them(layout: Layout) -> None:
    config = ours.write_job(layout, "job", ModelConfig(), TrainConfig(data="text.md"), "text", "0" * 64)
    plan = Plan.from_dict(json.loads(config.read_bytes()))
    encoded = planning.token_file_of(layout, plan).with_suffix(".json")
    encoded.parent.mkdir(parents=True)
    encoded.touch()
    os.utime(encoded, (112, 112))
    attempt = Attempt(token=1, start=None, start_step=0, start_token=None, worker="w", device="cpu", began_at=110)
    layout.attempts("job").mkdir()
    stages = [("loading", 115), ("evaluating", 116), ("training", 120)]
    lines = [progress.encode(StageBegan(stage=stage), seconds=at) for stage, at in stages] + [ours_said(0, 121)]
    layout.attempt_lines("job", 1).write_text("".join(f"{line}\n" for line in lines))
    assert startup.parts(layout, "job", attempt, 108) == {}
    lines += [ours_said(1, 123), progress.encode(StageBegan(stage="saving"), seconds=124), ours_said(2, 125)]
    layout.attempt_lines("job", 1).write_text("".join(f"{line}\n" for line in lines))
    assert startup.parts(layout, "job", attempt, 108) == {
        startup.QUEUE: 2, startup.TOKENS: 2, startup.START: 3, "loading": 1, "evaluating": 4, "training": 3,
        startup.TOTAL: 15,
    }  # fmt: skip
