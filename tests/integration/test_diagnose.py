"""`gptjobs diagnose` and `compare --eval-context`, on jobs that the trainer itself made."""

import json
from pathlib import Path
from typing import Any

import pytest

from gptjobs import progress, record
from gptjobs.config import Plan
from gptjobs.job import JobSpec
from gptjobs.layout import Layout
from tests.conftest import Commands, english
from tests.unit.conftest import NOON
from tests.unit.test_training import Ended, attempted, planned

IN_ORDER = {
    "steps": 120, "batch_size": 4, "block_size": 32, "n_positions": 32, "log_interval": 5, "checkpoint_interval": 30,
    "eval_interval": 1000, "learning_rate": 3e-3, "warmup_steps": 10, "data_order": "sequential",
}  # fmt: skip
BAD = (90 * 128, 110 * 128)
"""tokens, which are bytes: a job that reads in order is there from step 91 to 110"""


def recorded(layout: Layout, plan: Plan) -> Ended:
    """The job's attempt, with its lines on record, as the worker keeps them."""
    record.write_spec(layout, JobSpec(id=plan.job, kind=plan.kind, submitted_at=NOON))
    layout.config_file(plan.job).write_text(json.dumps(plan.to_dict()))
    ended = attempted(layout, plan)
    lines = "".join(f"{progress.encode(each, seconds=NOON)}\n" for each in ended.lines)
    layout.attempt_lines(plan.job, 1).write_text(lines)
    return ended


def with_bad_text(layout: Layout) -> None:
    text = english(9000)
    noise = "".join(chr(33 + (place * place * 7919 + place // 7) % 94) for place in range(BAD[1] - BAD[0]))
    (layout.root / "sources" / "text.md").write_text(text[: BAD[0]] + noise + text[BAD[1] :])


def test_a_job_that_met_bad_text_is_told_so_and_running_its_steps_again_agrees(
    gptjobs: Commands, layout: Layout
) -> None:
    with_bad_text(layout)
    ended = recorded(layout, planned(layout, "job", on_spike="stop", **IN_ORDER))
    assert ended.finished.cause == "spike"
    made = json.loads(gptjobs.ok("diagnose", "job", "--json"))
    assert made["schema"] == 1
    first = made["causes"][0]
    assert first["name"] == "data" and "--skip-tokens" in first["tests"][0]
    words = gptjobs.ok("diagnose", "job")
    assert words.startswith("1. the text: tokens ") and "(almost certain)" in words
    report = layout.outputs / "job" / "loss_plateau_analysis.md"
    assert words.endswith(str(report)) and first["title"] in report.read_text()
    for name in ("loss_plateau_analysis.png", "loss_plateau_analysis_text.png"):
        assert (report.parent / name).read_bytes().startswith(b"\x89PNG") and f"({name})" in report.read_text()

    before = sorted(layout.root.rglob("*"))
    ran = json.loads(gptjobs.ok("diagnose", "job", "--replay", "85:92", "--json"))
    assert sorted(layout.root.rglob("*")) == before, "nothing is written"
    assert (ran["where"], ran["step"], ran["device"]) == ("text", 60, "cpu")
    again = ran["variants"]["as it was"]
    assert [again[str(step)] for step in range(85, 93)] == pytest.approx(
        [ran["recorded"][str(step)] for step in range(85, 93)], rel=1e-5
    )
    shown = gptjobs.ok("diagnose", "job", "--replay", "85:92")
    assert "it is in the text" in shown and len([line for line in shown.splitlines() if line.startswith("  8")]) == 5


def test_a_job_whose_rate_breaks_it_rises_again_where_the_rate_is_as_it_was(gptjobs: Commands, layout: Layout) -> None:
    values = {**IN_ORDER, "learning_rate": 1.0, "warmup_steps": 120, "grad_clip": 0.0, "data_order": "shuffled"}
    recorded(layout, planned(layout, "job", on_spike="stop", **values))
    spike = next(
        json.loads(line)
        for line in layout.attempt_lines("job", 1).read_text().splitlines()
        if json.loads(line)["kind"] == "alert" and json.loads(line)["name"] == "spike"
    )
    made = json.loads(gptjobs.ok("diagnose", "job", "--json"))
    assert made["causes"][0]["name"] == "schedule"
    ran = json.loads(gptjobs.ok("diagnose", "job", "--replay", f"{spike['since']}:{spike['step']}", "--json"))
    assert ran["where"] == "rate", ran["evidence"]


def test_an_older_projects_log_is_diagnosed_too(gptjobs: Commands, tmp_path: Path) -> None:
    log = tmp_path / "old.log"
    log.write_text("Step 0: train loss 5.5, val loss 5.6\nStep 1500: train loss 3.3, val loss 3.4\n"
                   "Step 2000: train loss 6.1, val loss 6.2\n")  # fmt: skip
    known = ("--data", "sources/text.md", "--encoding", "bytes", "--batch-size", "8", "--block-size", "32")
    made = json.loads(gptjobs.ok("diagnose", str(log), *known, "--json"))
    assert {"unigram", "rise"} <= {each["name"] for each in made["causes"]}
    rise = next(each for each in made["causes"] if each["name"] == "rise")
    assert "these steps saw tokens 384,000 to 512,000" in " ".join(rise["evidence"])
    assert Path(made["files"][0]).name == "loss_plateau_analysis.md"
    assert gptjobs("diagnose", str(log)).returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("nowhere",), 4, "nor a file"),
        (("sources/text.md",), 3, "has no losses that can be read"),
        (("sources/text.md", "--replay", "1:2"), 2, "cannot be run again"),
        (("job", "--replay", "2:1"), 2, "is no range of steps"),
        (("job", "--replay", "5:99"), 4, "has the steps 1 to 6"),
    ],
)
def test_what_cannot_be_diagnosed_is_said(
    gptjobs: Commands, layout: Layout, words: tuple[str, ...], code: int, said: str
) -> None:
    recorded(layout, planned(layout, "job"))
    ended = gptjobs("diagnose", *words)
    assert (ended.returncode, said in ended.stderr) == (code, True), ended.stderr


def compared(gptjobs: Commands, *words: str) -> dict[str, Any]:
    return json.loads(gptjobs.ok("compare", "long", "short", "--json", *words))


def test_jobs_of_other_block_sizes_are_ranked_once_they_are_evaluated_at_one_context(
    gptjobs: Commands, layout: Layout
) -> None:
    """At the context that one of them was evaluated at, its loss is the same again."""
    long = recorded(layout, planned(layout, "long", steps=20, batch_size=2, block_size=16))
    recorded(layout, planned(layout, "short", steps=20, batch_size=4, block_size=8))
    made = compared(gptjobs)
    assert not made["ranked"] and "--eval-context 8 here" in made["why_not"]
    made = compared(gptjobs, "--eval-context", "16")
    assert made["ranked"] and {each["eval_context"] for each in made["jobs"]} == {16}
    losses = {each["id"]: each["val_loss"] for each in made["jobs"]}
    assert losses["long"] == pytest.approx(long.last.manifest.losses.val_loss, rel=1e-5)
    at_8 = compared(gptjobs, "--eval-context", "8")
    assert at_8["ranked"] and {each["eval_context"] for each in at_8["jobs"]} == {8}
    assert {each["tokens"] for each in at_8["jobs"]} == {640}
    longer = gptjobs("compare", "long", "short", "--eval-context", "4096")
    assert longer.returncode == 3 and "cannot be evaluated at context 4096" in longer.stderr
