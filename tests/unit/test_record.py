"""A job's record in the storage root: what of it counts."""

from pathlib import Path

import pytest

from gptjobs import durable
from gptjobs.job import JobSpec, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.record import read_outcome, write_outcome, write_spec
from tests.unit.conftest import begin

FINISHED = Outcome(state=JobState.FINISHED, reason="finished")
CANCELLED = Outcome(state=JobState.CANCELLED, reason="cancelled")


def test_the_first_outcome_stands(layout: Layout) -> None:
    begin(layout, "first", 1)
    write_outcome(layout, "first", FINISHED, token=1)
    write_outcome(layout, "first", CANCELLED, token=1)
    assert read_outcome(layout, "first") == FINISHED


def test_the_outcome_of_an_attempt_that_was_fenced_does_not_count(layout: Layout) -> None:
    begin(layout, "first", 1)
    begin(layout, "first", 2)
    write_outcome(layout, "first", FINISHED, token=1)
    assert read_outcome(layout, "first") is None
    write_outcome(layout, "first", CANCELLED, token=2)
    assert read_outcome(layout, "first") == CANCELLED


def test_an_outcome_that_a_mount_held_up_is_not_written_over_a_later_attempts(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(layout, "first", 1)
    write_beside = durable._write_beside

    def hang(path: Path, content: bytes, mode: int) -> Path:
        """Before the file has its name."""
        monkeypatch.setattr(durable, "_write_beside", write_beside)
        beside = write_beside(path, content, mode)
        begin(layout, "first", 2)
        write_outcome(layout, "first", CANCELLED, token=2)
        return beside

    monkeypatch.setattr(durable, "_write_beside", hang)
    write_outcome(layout, "first", FINISHED, token=1)
    assert read_outcome(layout, "first") == CANCELLED


def test_a_request_is_written_once(layout: Layout) -> None:
    first = JobSpec(id="first", kind="train", name="one", submitted_at=1.0)
    write_spec(layout, first)
    before = layout.job_file("first").read_bytes()
    write_spec(layout, JobSpec(id="first", kind="train", name="two", submitted_at=2.0))
    assert layout.job_file("first").read_bytes() == before
