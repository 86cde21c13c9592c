"""A job's metrics and events, read while its attempts' files grow; tests/unit/test_outputs.py has their meaning."""

import pytest

from gptjobs import progress, record
from gptjobs.cli import screen
from gptjobs.history import History
from gptjobs.layout import Layout
from gptjobs.progress import Alert, CheckpointWritten, Line
from tests.unit.conftest import NOON, begin, commit
from tests.unit.test_outputs import step


@pytest.fixture
def growing(layout: Layout) -> Layout:
    begin(layout, "first", 1)
    return layout


def add(layout: Layout, token: int, *lines: Line, end: str = "\n") -> None:
    text = "\n".join(progress.encode(line, seconds=NOON) for line in lines)
    with layout.attempt_lines("first", token).open("a") as file:
        file.write(text + end)


def losses(history: History) -> list[tuple[int, float]]:
    return [(each["step"], each["train_loss"]) for each in history.read().metrics]


def test_what_a_file_grew_by_is_there_at_the_next_look(growing: Layout) -> None:
    history = History(growing, "first")
    assert losses(history) == []
    add(growing, 1, step(0, 1.0), step(10, 1.1))
    assert losses(history) == [(0, 1.0), (10, 1.1)]
    add(growing, 1, step(20, 1.2))
    assert losses(history) == [(0, 1.0), (10, 1.1), (20, 1.2)]
    assert losses(history) == [(0, 1.0), (10, 1.1), (20, 1.2)]


def test_a_line_that_is_half_written_counts_once_it_is_whole(growing: Layout) -> None:
    history = History(growing, "first")
    whole = progress.encode(step(0, 1.0), seconds=NOON)
    with growing.attempt_lines("first", 1).open("a") as file:
        file.write(whole[:30])
        file.flush()
        assert losses(history) == []
        file.write(whole[30:] + "\n")
    assert losses(history) == [(0, 1.0)]


def test_only_what_is_new_is_read(growing: Layout) -> None:
    history = History(growing, "first")
    add(growing, 1, *(step(number, 1.0) for number in range(100)))
    assert len(losses(history)) == 100
    file = growing.attempt_lines("first", 1)
    file.write_text("unread".ljust(file.stat().st_size - 1) + "\n")
    add(growing, 1, step(100, 1.0))
    assert len(losses(history)) == 101


def test_a_new_attempt_takes_over_from_where_it_began(growing: Layout) -> None:
    history = History(growing, "first")
    add(growing, 1, step(0, 1.0), step(10, 1.1), step(20, 1.2))
    assert losses(history)[-1] == (20, 1.2)
    first = commit(growing, "first", token=1, step=10)
    begin(growing, "first", 3, start=first)
    assert losses(history) == [(0, 1.0), (10, 1.1)]
    add(growing, 3, step(10, 3.1), step(20, 3.2))
    assert losses(history) == [(0, 1.0), (10, 1.1), (20, 3.2)]


def test_events_of_all_attempts_come_in_order(growing: Layout) -> None:
    history = History(growing, "first")
    written = CheckpointWritten(name="a.pt", step=10, tokens=5120, size=9, val_loss=None)
    add(growing, 1, step(0, 1.0), written)
    history.read()
    first = commit(growing, "first", token=1, step=10)
    begin(growing, "first", 2, start=first)
    kinds = [(each["kind"], each["token"]) for each in history.read().events]
    assert kinds == [("attempt", 1), ("checkpoint", 1), ("attempt", 2)]


def test_an_alert_is_an_event_that_the_screen_and_the_attempt_tell(growing: Layout) -> None:
    add(growing, 1, step(0, 1.0), Alert(name="checkpoint_failed", step=10, reason="no space"))
    _, event = History(growing, "first").read().events
    told = screen._event(event)
    assert told is not None and told.plain.endswith("alert: no space")
    (past,) = record.read_attempts(growing, "first")
    assert [(each["name"], each["step"], each["reason"]) for each in past.alerts] == [
        ("checkpoint_failed", 10, "no space")
    ]


def test_a_job_without_a_folder_has_no_history(layout: Layout) -> None:
    history = History(layout, "none").read()
    assert (history.metrics, history.events) == ([], [])


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xfe\x00", b"5", b"[1]", b"{}", b'{"kind": ["progress"]}', b'{"kind": "progress"}', b"[" * 100_000,
        b'{"kind": "progress", "step": "1"}', b'{"kind": "checkpoint", "name": 5}', b"x" * 10_000_000,
        b'{"kind": "progress", "step": 10, "end_step": 20, "tokens": 1, "train_loss": NaN, "learning_rate": 1}',
    ],
    ids=lambda garbage: repr(garbage[:40]),
)  # fmt: skip
def test_garbage_among_the_lines_hides_no_line(growing: Layout, garbage: bytes) -> None:
    add(growing, 1, step(0, 1.0))
    with growing.attempt_lines("first", 1).open("ab") as file:
        file.write(garbage + b"\n")
    add(growing, 1, step(10, 1.1))
    assert losses(History(growing, "first")) == [(0, 1.0), (10, 1.1)]
