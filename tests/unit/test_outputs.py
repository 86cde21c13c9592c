"""What a job leaves in outputs: put together from its attempts' own lines, along the lineage."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptjobs import durable, progress
from gptjobs.checkpoint import Losses, latest_token
from gptjobs.config import Plan
from gptjobs.contract import value_in_words
from gptjobs.job import JobSpec, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.progress import Alert, CheckpointWritten, Finished, Line, Progress, StageBegan
from tests.unit.conftest import NANO, NOON, begin, commit
from worker import outputs

SPEC = JobSpec(id="first", kind="train", submitted_at=NOON)
PLAN = Plan(job="first", kind="train", settled=NANO, data_name="text", data_digest="d" * 64, parent=None)
FINISHED = Outcome(state=JobState.FINISHED, reason="finished")


def step(number: int, loss: float, val_loss: float | None = None) -> Progress:
    return Progress(
        step=number, end_step=400, tokens=512 * number, train_loss=loss, val_loss=val_loss,
        eval_context=64 if val_loss is not None else None, learning_rate=1e-3, grad_norm=1.0, tokens_per_s=1e4,
        eta_s=9.0,
    )  # fmt: skip


def write_lines(layout: Layout, token: int, *lines: Line, end: str = "") -> None:
    text = "".join(progress.encode(line, seconds=NOON + token) + "\n" for line in lines)
    layout.attempt_lines("first", token).write_text(text + end)


def records(layout: Layout, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (layout.job_outputs("first") / name).read_text().splitlines()]


def losses(layout: Layout) -> list[tuple[int, float]]:
    outputs.put_together(layout, SPEC)
    return [(each["step"], each["train_loss"]) for each in records(layout, "metrics.jsonl")]


@pytest.fixture
def thrice(layout: Layout) -> Layout:
    """Attempt 1 wrote a checkpoint at step 20 and was killed at 30, in the middle of a line; attempt 2 began
    at 20, was cut off, and wrote on to 40 on what became a dead branch; attempt 3 began at 20 too."""
    begin(layout, "first", 1)
    torn = progress.encode(step(35, 1.35), seconds=NOON)[:40]
    first = commit(layout, "first", token=1, step=20)
    written = CheckpointWritten(name="a.pt", step=20, tokens=10240, size=9, val_loss=None)
    write_lines(
        layout, 1, StageBegan(stage="loading"), step(0, 1.0, 5.5), step(10, 1.1), step(20, 1.2), written,
        step(30, 1.3), end=torn,
    )  # fmt: skip
    begin(layout, "first", 2, start=first)
    write_lines(layout, 2, step(20, 2.2, 4.4), step(30, 2.3), step(40, 2.4))
    commit(layout, "first", token=2, step=40, parent=first)
    begin(layout, "first", 3, start=first)
    ended = Finished(outcome="finished", step=40)
    write_lines(layout, 3, step(20, 3.2, 4.4), step(30, 3.3), step(40, 3.4, 3.9), ended)
    commit(
        layout, "first", token=3, step=40, parent=first,
        losses=Losses(train_loss=3.4, val_loss=3.9, eval_step=40, eval_context=64, eval_tokens=4096),
    )  # fmt: skip
    return layout


def test_metrics_are_each_step_once_from_the_attempt_whose_step_counts(thrice: Layout) -> None:
    assert losses(thrice) == [(0, 1.0), (10, 1.1), (20, 1.2), (30, 3.3), (40, 3.4)]


def test_an_attempt_that_hung_while_it_wrote_does_not_write_over_a_later_ones_end(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(layout, "first", 1)
    first = commit(layout, "first", token=1, step=10)
    write_lines(layout, 1, step(0, 1.0), step(10, 1.1))
    write = durable.write

    def hang(path: Path, content: bytes) -> None:
        if latest_token(layout, "first") == 1:
            begin(layout, "first", 2, start=first)
            write_lines(layout, 2, step(10, 2.1), step(20, 2.2), Finished(outcome="finished", step=20))
            outputs.put_together(layout, SPEC)
        write(path, content)

    monkeypatch.setattr(durable, "write", hang)
    assert losses(layout) == [(0, 1.0), (10, 1.1), (20, 2.2)]
    assert [each["kind"] for each in records(layout, "events.jsonl")][-1] == "finished"


def test_before_the_newest_attempt_says_anything_metrics_end_where_it_began(thrice: Layout) -> None:
    thrice.attempt_lines("first", 3).unlink()
    assert losses(thrice) == [(0, 1.0), (10, 1.1), (20, 1.2)]


def test_a_descendant_of_descendants_counts_each_up_to_where_the_next_began(layout: Layout) -> None:
    begin(layout, "first", 1)
    one = commit(layout, "first", token=1, step=10)
    begin(layout, "first", 2, start=one)
    two = commit(layout, "first", token=2, step=20, parent=one)
    begin(layout, "first", 4, start=two)
    for token in (1, 2, 4):
        write_lines(layout, token, *(step(number, token + number / 100) for number in range(0, 31, 5)))
    expected = [(0, 1.0), (5, 1.05), (10, 1.1), (15, 2.15), (20, 2.2), (25, 4.25), (30, 4.3)]
    assert losses(layout) == expected


def test_an_evaluation_that_a_stop_put_off_to_the_next_attempt_is_in_the_metrics(layout: Layout) -> None:
    begin(layout, "first", 1)
    one = commit(layout, "first", token=1, step=10)
    begin(layout, "first", 2, start=one)
    write_lines(layout, 1, step(0, 1.0, 5.5), step(10, 1.1))
    write_lines(layout, 2, step(10, 2.1, 4.4), step(20, 2.2))
    assert [step_ for step_, _ in losses(layout)] == [0, 10, 20]
    assert [each["val_loss"] for each in records(layout, "metrics.jsonl")] == [5.5, 4.4, None]


def test_a_job_resumed_from_another_has_its_own_lines_alone(layout: Layout) -> None:
    begin(layout, "other", 1)
    parent = commit(layout, "other", token=1, step=20)
    layout.attempt_lines("other", 1).write_text(progress.encode(step(10, 9.9), seconds=NOON) + "\n")
    begin(layout, "first", 1, start=parent)
    write_lines(layout, 1, step(20, 1.2), step(30, 1.3))
    assert losses(layout) == [(20, 1.2), (30, 1.3)]


def test_a_job_without_attempts_has_no_metrics(layout: Layout) -> None:
    layout.job_outputs("first").mkdir()
    assert losses(layout) == []
    assert [each["kind"] for each in records(layout, "events.jsonl")] == ["submitted"]


def test_events_tell_of_every_attempt_also_of_dead_branches(thrice: Layout) -> None:
    outputs.put_together(thrice, SPEC)
    events = records(thrice, "events.jsonl")
    assert [(each["kind"], each.get("token")) for each in events] == [
        ("submitted", None), ("attempt", 1), ("checkpoint", 1), ("attempt", 2), ("attempt", 3), ("finished", 3),
    ]  # fmt: skip
    assert {each["schema"] for each in events} == {1}
    assert events[0]["time"] == NOON
    assert (events[1]["start"], events[1]["step"], events[1]["worker"]) == (None, 0, "worker@host")
    assert (events[3]["start"], events[3]["step"]) == (events[4]["start"], events[4]["step"])
    assert events[4]["step"] == 20


def test_putting_together_again_gives_the_same_bytes_and_nothing_else(thrice: Layout) -> None:
    def files() -> dict[str, bytes]:
        folder = thrice.job_outputs("first")
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    outputs.put_together(thrice, SPEC)
    once = files()
    outputs.put_together(thrice, SPEC)
    assert files() == once
    assert sorted(once) == ["events.jsonl", "metrics.jsonl"]


def test_the_summary_has_every_value_with_its_origin(thrice: Layout) -> None:
    outputs.summarise(thrice, SPEC, PLAN, FINISHED)
    rows = [line.strip("| ").split(" | ") for line in thrice.summary_file("first").read_text().splitlines()]
    record = NANO.to_dict()
    for name, value in {**record["model"], **record["train"]}.items():
        assert [name, value_in_words(value), NANO.origins[name]] in rows
    assert ["batch_size", "8", "--batch-size"] in rows
    assert ["beta1", "0.9", "default"] in rows


def test_the_summary_says_how_the_job_went(thrice: Layout) -> None:
    plan = replace(PLAN, parent="checkpoints/other/a.pt")
    outputs.summarise(thrice, replace(SPEC, name="owls"), plan, FINISHED)
    text = thrice.summary_file("first").read_text()
    assert text.startswith("# Job owls\n")
    assert "- id: first\n- finished" in text
    assert "- steps 0 → 40 (planned: 400)\n- from checkpoints/other/a.pt\n" in text
    assert "validation loss 5.5000 at step 0 → 3.9000 at step 40; best 3.9000 at step 40" in text
    assert "context 64" in text
    assert f"- data sources/text.md, SHA-256 {'d' * 64}" in text


def test_the_summary_lists_the_checkpoints_that_count(thrice: Layout) -> None:
    outputs.summarise(thrice, SPEC, PLAN, FINISHED)
    rows = [line for line in thrice.summary_file("first").read_text().splitlines() if line.startswith("| checkpoints/")]
    assert [row.split(" | ")[1:] for row in rows] == [["20", "102400", "2.7500 |"], ["40", "102400", "3.9000 |"]]
    assert all("/first/" in row for row in rows)


def test_the_picture_of_the_losses_is_a_whole_png(thrice: Layout) -> None:
    outputs.summarise(thrice, SPEC, PLAN, FINISHED)
    content = thrice.loss_picture("first").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    assert (int.from_bytes(content[16:20]), int.from_bytes(content[20:24])) == (960, 540)
    names = sorted(path.name for path in thrice.job_outputs("first").iterdir())
    assert names == ["attempts", "events.jsonl", "loss.png", "metrics.jsonl", "summary.md"]


def test_the_summary_lists_what_was_alerted_of_any_attempt(thrice: Layout) -> None:
    for token, name in ((1, "slowdown"), (3, "spike")):
        with thrice.attempt_lines("first", token).open("a") as lines:
            alert = Alert(name=name, step=10 * token, reason="it is | so")
            lines.write("\n" * (token == 1) + progress.encode(alert, seconds=NOON) + "\n")
    outputs.summarise(thrice, SPEC, PLAN, FINISHED)
    text = thrice.summary_file("first").read_text()
    assert "## Alerts\n\n- step 10, slowdown: it is | so\n- step 30, spike: it is | so\n\n## Checkpoints" in text


def test_a_summary_of_a_job_without_alerts_has_no_list_of_them(thrice: Layout) -> None:
    outputs.summarise(thrice, SPEC, PLAN, FINISHED)
    assert "Alerts" not in thrice.summary_file("first").read_text()


def test_a_job_that_never_trained_has_a_summary_without_a_picture(layout: Layout) -> None:
    begin(layout, "first", 1)
    outputs.summarise(layout, SPEC, PLAN, Outcome(state=JobState.CANCELLED, reason="cancelled"))
    text = layout.summary_file("first").read_text()
    assert "- id: first\n- cancelled" in text
    assert not layout.loss_picture("first").exists()
    assert "loss.png" not in text


def test_a_loss_that_was_no_number_leaves_a_gap_and_no_error(layout: Layout) -> None:
    begin(layout, "first", 1)
    write_lines(layout, 1, step(0, 5.0, 5.1), step(10, float("nan")))
    outputs.summarise(layout, SPEC, PLAN, Outcome(state=JobState.DIVERGED, reason="not finite"))
    assert losses(layout) == [(0, 5.0), (10, None)]
    assert layout.loss_picture("first").stat().st_size > 1000


def test_half_a_line_that_a_full_disk_left_costs_no_other(layout: Layout) -> None:
    begin(layout, "first", 1)
    whole = [progress.encode(step(number, 1.0), seconds=NOON) for number in (0, 10, 20)]
    layout.attempt_lines("first", 1).write_text(f"{whole[0]}\n{whole[1][:30]}{whole[1]}\n{whole[2]}\n")
    assert losses(layout) == [(0, 1.0), (20, 1.0)]
