"""What a tracker is told of an attempt: the job's whole course as lineage has it, as long as it is the newest one."""

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pytest

from gptjobs import durable, progress, record, trackers, trials
from gptjobs.errors import UsageError
from gptjobs.history import Line
from gptjobs.job import JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.progress import Alert
from tests.unit.conftest import NOON, begin, commit
from tests.unit.test_outputs import FINISHED, PLAN, SPEC, step, thrice, write_lines  # noqa: F401  # a fixture
from tests.unit.test_sweep import sweep
from worker import subject, track


class Told:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.losses: list[tuple[int, float]] = []
        self.values: list[float | None] = []
        self.alerts: list[tuple[str, bool]] = []
        self.ends: list[Outcome | None] = []
        self.at_flush: Callable[[], Any] = lambda: None

    def progress(self, line: Line) -> None:
        self.losses.append((line["step"], line["train_loss"]))
        self.values.append(line["val_loss"])

    def alert(self, line: Line, *, is_told: bool) -> None:
        self.alerts.append((line["reason"], is_told))

    def flush(self) -> None:
        self.at_flush()

    def end(self, outcome: Outcome | None) -> None:
        self.ends.append(outcome)


@pytest.fixture
def told(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> Told:
    made = Told()
    monkeypatch.setattr(track, "_target", lambda *asked: made)
    monkeypatch.setattr(track, "LOOK_S", 0.01)
    durable.make_folder(layout.job_outputs("first"))
    record.write_spec(layout, SPEC)
    durable.write(layout.config_file("first"), durable.to_json(PLAN.to_dict()))
    return made


def follow(layout: Layout, token: int, over: threading.Event | None = None) -> None:
    """Until the end of an attempt that has ended already, unless told otherwise."""
    if over is None:
        over = threading.Event()
        over.set()
    track._follow("tensorboard", layout, "first", token, over)


def add(layout: Layout, token: int, *lines: progress.Line) -> None:
    with layout.attempt_lines("first", token).open("a") as file:
        file.writelines(progress.encode(line, seconds=NOON) + "\n" for line in lines)


def add_end(layout: Layout, token: int, outcome: Outcome) -> None:
    with layout.attempt_lines("first", token).open("ab") as file:
        line = {"kind": "ended", "time": NOON, **outcome.to_dict()}
        file.write(durable.to_json(line).replace(b"\n", b"") + b"\n")


def alert(number: int, reason: str) -> Alert:
    return Alert(name="spike", step=number, reason=reason)


def test_each_step_is_told_once_as_the_lineage_has_it(layout: Layout, told: Told, thrice: Layout) -> None:  # noqa: F811
    add(layout, 3, step(50, 3.5))
    add_end(layout, 3, FINISHED)
    follow(layout, 3)
    steps = [number for number, _ in told.losses]
    assert steps == sorted(set(steps)) == [0, 10, 20, 30, 40, 50]
    assert told.losses[:3] == [(0, 1.0), (10, 1.1), (20, 1.2)]
    assert told.losses[-1] == (50, 3.5)
    assert all(loss > 3 for number, loss in told.losses if number > 20)
    assert told.values[0] == 5.5
    assert told.ends == [FINISHED]


def test_an_attempts_first_line_completes_the_last_one_before_it(layout: Layout, told: Told) -> None:
    begin(layout, "first", 1)
    write_lines(layout, 1, step(0, 1.0), step(10, 1.1))
    begin(layout, "first", 2, start=commit(layout, "first", token=1, step=10))
    write_lines(layout, 2, step(10, 2.1, 4.4), step(20, 2.2))
    follow(layout, 2)
    assert told.losses == [(0, 1.0), (10, 1.1), (20, 2.2)]
    assert told.values == [None, 4.4, None]


def test_lines_are_told_as_they_come_and_those_written_just_before_the_end_too(layout: Layout, told: Told) -> None:
    begin(layout, "first", 1)
    write_lines(layout, 1, step(0, 1.0))
    over = threading.Event()

    def goes_on() -> None:
        add(layout, 1, step(10, 1.1))
        told.at_flush = ends

    def ends() -> None:
        assert told.losses[-1] == (10, 1.1)
        add(layout, 1, step(20, 1.2))
        add_end(layout, 1, FINISHED)
        told.at_flush = lambda: None
        over.set()

    told.at_flush = goes_on
    follow(layout, 1, over)
    assert told.losses == [(0, 1.0), (10, 1.1), (20, 1.2)]
    assert told.ends == [FINISHED]


def test_alerts_of_earlier_attempts_are_told_where_they_count(layout: Layout, told: Told) -> None:
    begin(layout, "first", 1)
    write_lines(layout, 1, step(10, 1.1), alert(5, "before"), step(20, 1.2), alert(15, "gone back over"))
    begin(layout, "first", 2, start=commit(layout, "first", token=1, step=10))
    write_lines(layout, 2, step(10, 2.1), alert(12, "new"), step(20, 2.2))
    follow(layout, 2)
    assert told.alerts == [("before", True), ("new", False)]


def test_nothing_is_told_once_a_later_attempt_is_on_record(layout: Layout, told: Told) -> None:
    begin(layout, "first", 1)
    write_lines(layout, 1, step(0, 1.0), step(10, 1.1))

    def is_taken_over() -> None:
        begin(layout, "first", 2)
        add(layout, 1, step(20, 1.2))

    told.at_flush = is_taken_over
    follow(layout, 1, threading.Event())
    assert told.losses == [(0, 1.0), (10, 1.1)]
    assert told.ends == [None]


def test_of_an_attempt_that_reported_nothing_nothing_is_told(layout: Layout, told: Told) -> None:
    begin(layout, "first", 1)
    add_end(layout, 1, Outcome(state=JobState.FAILED, reason="refused"))
    follow(layout, 1)
    assert told.losses == told.ends == []


def test_what_is_followed_has_its_values_its_parent_and_its_group(layout: Layout, told: Told) -> None:
    begin(layout, "first", 1)
    alone = track._subject(layout, "first", 1)
    assert alone.group == SPEC.called
    assert alone.hyperparameters["block_size"] == PLAN.settled.train.block_size
    assert alone.hyperparameters["n_layer"] == PLAN.settled.model.n_layer
    assert (alone.hyperparameters["job"], alone.hyperparameters["parent"]) == ("first", None)
    trials.write_sweep(layout, sweep(id="many", name="which-rate"))
    layout.job_file("first").unlink()
    record.write_spec(layout, replace(SPEC, sweep="many", trial=0))
    assert track._subject(layout, "first", 1).group == "which-rate"


def test_a_branch_begins_with_an_attempt_that_goes_back_over_reported_steps(layout: Layout) -> None:
    branch = partial(track._branch, layout, "first")
    begin(layout, "first", 1)
    write_lines(layout, 1, step(0, 1.0), step(10, 1.1))
    first = commit(layout, "first", token=1, step=10)
    begin(layout, "first", 2, start=first)
    assert branch() is None
    write_lines(layout, 2, step(10, 2.1), step(20, 2.2))
    begin(layout, "first", 4, start=first)
    assert branch() == 4
    write_lines(layout, 4, step(10, 4.1))
    begin(layout, "first", 5, start=first)
    assert branch() == 4


def test_a_line_has_a_point_on_each_curve_that_it_has_a_value_for() -> None:
    assert subject.values(asdict(step(10, 1.5))) == {
        "train/loss": 1.5, "learning_rate": 1e-3, "grad_norm": 1.0, "tokens_per_s": 1e4, "tokens": 5120,
    }  # fmt: skip
    assert subject.values(asdict(step(10, 1.5, 2.5)))["val/loss"] == 2.5


@pytest.mark.parametrize(("tracker", "extra"), [("tensorboard", "tb"), ("wandb", "track")])
def test_a_tracker_whose_package_is_not_here_is_refused_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, tracker: str, extra: str
) -> None:
    trackers.check([tracker])
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=f"--track {tracker} needs the package {tracker}") as refused:
        trackers.check([tracker])
    assert refused.value.hint == f"pip install 'gptjobs[{extra}]'"


HANGS = """
import sys, threading
from tests.unit.test_sweep import sweep
from worker import subject, track
track.GRACE_S = 0.1
track._follow = lambda *all: threading.Event().wait()
sys.argv = ["track", "tensorboard", "root", "job", "1"]
track.main()
"""


def test_a_tracker_that_hangs_ends_by_itself_after_its_attempt() -> None:
    child = subprocess.Popen([sys.executable, "-c", HANGS], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 1
    assert said == b"not done 0.1 s after the attempt's end\n"
