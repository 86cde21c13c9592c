"""What the doctor is for, as stories: bad text that a job reads in order, and a schedule that breaks training."""

import json
import random
import shlex
from typing import Any

import pytest

from tests.conftest import Commands, Workers, english

SMALL = (
    "--model", "nano", "--n-layer", "2", "--n-embd", "64", "--batch-size", "8", "--block-size", "64",
    "--warmup-steps", "20", "--compile", "off", "--precision", "float32", "--eval-interval", "500",
    "--eval-tokens", "8192",
)  # fmt: skip
STEPS = 214
FIRST, LAST = 85_000, 103_000
"""bytes, which are tokens, of the text that are bad: a job that reads in order is there from step 167 to 201"""
LINE = "the quick brown fox jumps over a lazy dog while seven owls watch.\n"


def bad_text(kind: str) -> str:
    if kind == "random":
        draw = random.Random(1)
        return "".join(chr(draw.randrange(33, 127)) for _ in range(LAST - FIRST))
    return (LINE * (LAST - FIRST))[: LAST - FIRST]


def read_in_order(gptjobs: Commands, data: str, *words: str) -> dict[str, Any]:
    """A job on this text, once it has ended."""
    order = ("--data-order", "sequential", "--learning-rate", "3e-3", "--checkpoint-interval", "30")
    command = ("submit", "train", "-q", *SMALL, *order, "--data", f"sources/{data}.md", "--steps", str(STEPS), *words)
    job = gptjobs.ok(*command)
    gptjobs.ok("wait", job, "--timeout", "200")
    return json.loads(gptjobs.ok("show", job, "--json"))


def overlap(one: tuple[int, int], other: tuple[int, int]) -> float:
    """What both share, as a part of what either has."""
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return max(0, shared) / (max(one[1], other[1]) - min(one[0], other[0]))


@pytest.mark.parametrize("kind", ["random", "repeated"])
def test_bad_text_is_named_and_a_guarded_job_ends_as_if_it_were_not_there(
    gptjobs: Commands, workers: Workers, kind: str
) -> None:
    text = english(24_000)[:120_000]
    sources = gptjobs.layout.root / "sources"
    (sources / "clean.md").write_text(text)
    (sources / "bad.md").write_text(text[:FIRST] + bad_text(kind) + text[LAST:])
    workers.start()

    found = json.loads(gptjobs.ok("data", "inspect", "sources/bad.md", "--encoding", "bytes", "--json"))
    worst = found["anomalies"][0]
    assert overlap((worst["first"], worst["last"]), (FIRST, LAST)) >= 0.8

    clean = read_in_order(gptjobs, "clean")
    guarded = read_in_order(gptjobs, "bad")
    unguarded = read_in_order(gptjobs, "bad", "--on-spike", "warn")
    assert [each["attempt"] for each in (clean, guarded, unguarded)] == [1, 2, 1]
    assert abs(guarded["val_loss"] - clean["val_loss"]) <= 0.05
    assert unguarded["val_loss"] - clean["val_loss"] > 0.05

    made = json.loads(gptjobs.ok("diagnose", guarded["id"], "--json"))
    first = made["causes"][0]
    assert first["name"] == "data" and first["strength"] >= 0.9
    named = tuple(int(each) for each in first["tests"][0].partition("--skip-tokens ")[2].split()[0].split(":"))
    assert overlap((named[0], named[1]), (FIRST, LAST)) >= 0.8
    assert (gptjobs.layout.outputs / guarded["id"] / "loss_plateau_analysis.md").is_file()
    resumed = gptjobs.ok(*shlex.split(first["tests"][0])[1:], "-q")
    gptjobs.ok("wait", resumed, "--timeout", "100")


def test_a_schedule_that_breaks_training_is_named_and_the_resume_that_is_proposed_trains_on(
    gptjobs: Commands, workers: Workers
) -> None:
    (gptjobs.layout.root / "sources" / "clean.md").write_text(english(24_000))
    workers.start()
    words = ("--learning-rate", "0.5", "--warmup-steps", "300", "--grad-clip", "0", "--checkpoint-interval", "20")
    job = gptjobs.ok("submit", "train", "-q", *SMALL, "--data", "sources/clean.md", "--steps", "300", *words)
    assert gptjobs("wait", job, "--timeout", "200").returncode == 1
    shown = json.loads(gptjobs.ok("show", job, "--json"))
    assert shown["state"] == "diverged" and "spike" in shown["reason"]
    metrics = (gptjobs.layout.outputs / job / "metrics.jsonl").read_text().splitlines()
    plateau = min(json.loads(line)["train_loss"] or 99.0 for line in metrics)

    causes = json.loads(gptjobs.ok("diagnose", job, "--json"))["causes"]
    assert causes[0]["name"] == "schedule" and causes[0]["strength"] >= 0.9
    assert not [each for each in causes if each["name"] == "data"]

    resumed = gptjobs.ok(*shlex.split(causes[0]["tests"][0])[1:], "-q")
    gptjobs.ok("wait", resumed, "--timeout", "200")
    assert json.loads(gptjobs.ok("show", resumed, "--json"))["val_loss"] < plateau
