"""What a supervisor decides by itself: whether a trainer hangs, and why one died, with real children."""

import io
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptjobs import progress
from gptjobs.job import Cause
from gptjobs.progress import CheckpointWritten, Finished, MicroBatch, Progress, StageBegan
from worker import supervisor
from worker.supervisor import (
    FIRST_STEP_LIMIT_S,
    HANG_LIMIT_S,
    HANG_STEPS,
    LONGEST_LINE,
    Drain,
    Ended,
    HangWatch,
    Supervisor,
    cause_of,
    lines_of,
)  # fmt: skip


def step(number: int) -> Progress:
    return Progress(
        step=number, end_step=1000, tokens=number, train_loss=1.0, learning_rate=1e-3, grad_norm=1.0,
        tokens_per_s=1.0, eta_s=1.0,
    )  # fmt: skip


def trained(*lines: tuple[int, float]) -> HangWatch:
    """With a trainer that reported these steps at these seconds."""
    patience = HangWatch()
    patience.note(StageBegan(stage="training"), lines[0][1])
    for number, now in lines:
        patience.note(step(number), now)
    return patience


def test_a_trainer_that_is_silent_for_five_minutes_hangs():
    patience = trained((1, 0.0), (2, 1.0))
    assert not patience.is_over(1.0 + HANG_LIMIT_S)
    assert patience.is_over(1.1 + HANG_LIMIT_S)


def test_any_line_is_a_sign_of_life():
    patience = trained((1, 0.0), (2, 1.0))
    patience.note(step(3), 250.0)
    assert not patience.is_over(2.0 + HANG_LIMIT_S)


@pytest.mark.parametrize("stage", ["loading", "encoding"])
def test_a_trainer_that_is_silent_for_an_hour_before_it_trains_hangs(stage: str):
    patience = trained((1, 0.0), (2, 1.0))
    patience.note(StageBegan(stage=stage), 2.0)
    assert not patience.is_over(2.0 + FIRST_STEP_LIMIT_S)
    assert patience.is_over(2.1 + FIRST_STEP_LIMIT_S)


def test_silence_while_the_supervisor_itself_stood_still_is_forgiven():
    patience = trained((1, 0.0), (2, 1.0))
    patience.forgive(5000.0)
    assert not patience.is_over(5000.0 + HANG_LIMIT_S)
    assert patience.is_over(5000.1 + HANG_LIMIT_S)


@pytest.mark.parametrize("stage", ["evaluating", "saving"])
def test_a_trainer_that_evaluates_or_saves_does_not_hang(stage: str):
    patience = trained((1, 0.0), (2, 1.0))
    patience.note(StageBegan(stage=stage), 2.0)
    assert not patience.is_over(100_000.0)
    patience.note(StageBegan(stage="training"), 100_000.0)
    assert patience.is_over(100_001.0 + HANG_LIMIT_S)


def test_a_trainer_that_has_said_nothing_yet_is_loading():
    assert not HangWatch().is_over(time.monotonic() + FIRST_STEP_LIMIT_S - 60.0)


def test_slow_steps_are_given_the_time_of_twenty():
    patience = trained((10, 0.0), (12, 200.0), (14, 400.0))
    assert not patience.is_over(400.0 + HANG_STEPS * 100.0)
    assert patience.is_over(400.1 + HANG_STEPS * 100.0)


def test_one_slow_step_among_quick_ones_makes_no_one_patient():
    patience = trained((1, 0.0), (2, 1.0), (3, 1001.0), (4, 1002.0))
    assert patience.is_over(1003.0 + HANG_LIMIT_S)


def test_the_time_of_an_evaluation_is_not_that_of_a_step():
    patience = trained((1, 0.0), (2, 1.0))
    patience.note(StageBegan(stage="evaluating"), 1.0)
    patience.note(StageBegan(stage="training"), 1001.0)
    patience.note(step(3), 1002.0)
    assert patience.is_over(1003.0 + HANG_LIMIT_S)


def test_a_trainer_that_saves_and_evaluates_at_every_line_has_its_steps_timed_all_the_same():
    patience = HangWatch()
    patience.note(StageBegan(stage="training"), 0.0)
    for number in range(1, 9):
        began = number * 1000.0
        patience.note(StageBegan(stage="evaluating"), began)
        patience.note(StageBegan(stage="training"), began + 300.0)
        patience.note(step(number), began + 300.0)
        patience.note(StageBegan(stage="saving"), began + 300.0)
        patience.note(StageBegan(stage="training"), began + 900.0)
    assert not patience.is_over(8900.0 + HANG_STEPS * 100.0)
    assert patience.is_over(8900.1 + HANG_STEPS * 100.0)


def test_a_second_line_of_one_step_divides_by_nothing():
    assert not trained((1, 0.0), (1, 5.0)).is_over(6.0)


def test_patience_follows_the_newest_steps():
    slow = [(number, 100.0 * number) for number in range(60)]
    quick = [(60 + number, 6000.0 + number) for number in range(60)]
    assert trained(*slow, *quick).is_over(6060.0 + HANG_LIMIT_S)


@pytest.mark.parametrize(
    ("code", "cause", "words"),
    [
        (0, Cause.EXIT_CODE, "exit code 0"),
        (3, Cause.EXIT_CODE, "exit code 3"),
        (143, Cause.KILLED, "killed from outside: SIGTERM, twice"),
        (-signal.SIGKILL, Cause.KILLED, "killed from outside: SIGKILL"),
        (-signal.SIGSEGV, Cause.SIGNAL, "signal SIGSEGV"),
        (-200, Cause.SIGNAL, "signal 200"),
    ],
)
def test_a_return_code_in_words(code: int, cause: Cause, words: str):
    assert cause_of(code, out_of_memory=False) == (cause, words)


class Trickle(io.BytesIO):
    """A pipe: what is read comes in pieces of some size."""

    def __init__(self, content: bytes, piece: int) -> None:
        super().__init__(content)
        self._piece = piece

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 0, self._piece))


@given(st.lists(st.binary().filter(lambda line: b"\n" not in line)), st.integers(1, 100))
def test_a_childs_lines_are_read_whole_however_they_come(lines: list[bytes], piece: int) -> None:
    assert list(lines_of(Trickle(b"".join(line + b"\n" for line in lines), piece))) == lines


def test_a_last_line_without_an_end_is_a_line() -> None:
    assert list(lines_of(Trickle(b"a\nb", 1))) == [b"a", b"b"]


@pytest.mark.parametrize("piece", [1 << 10, LONGEST_LINE, LONGEST_LINE - 1])
@pytest.mark.parametrize("length", [LONGEST_LINE + 1, 3 * LONGEST_LINE, 10_000_000])
def test_a_line_longer_than_any_report_is_dropped_and_those_around_it_are_not(length: int, piece: int) -> None:
    stream = Trickle(b"before\n" + b"x" * length + b"\nafter\n" + b"y" * length, piece)
    assert list(lines_of(stream)) == [b"before", b"after"]


def test_a_first_step_may_take_long() -> None:
    patience = HangWatch()
    patience.note(StageBegan(stage="training"), 0.0)
    assert not patience.is_over(3000.0)
    assert patience.is_over(3700.0)


def supervised(
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    *lines: progress.Line,
    lease: dict[str, bool] | None = None,
    drain: Drain | None = None,
    on_line: Callable[[Supervisor], None] = lambda made: None,
) -> Ended:
    """How a child ended that reports these lines, then runs `code`."""
    report = "".join(f"print({progress.encode(line, seconds=0.0)!r}, flush=True)\n" for line in lines)
    held: Any = SimpleNamespace(**{"lost": False, "is_asked_to_stop": False, "is_to_end_now": False, **(lease or {})})
    monkeypatch.setattr(supervisor, "POLL_S", 0.02)
    with open("/dev/null", "wb") as log:  # noqa: PTH123  # a device
        command = ["-c", f"import os, signal, sys, time\n{report}{code}"]
        made = Supervisor(command, log, held, drain or Drain(), lambda line, text: on_line(made))
        return made.run()


def itself(name: str) -> str:
    return f"os.kill(os.getpid(), signal.{name}); time.sleep(60)"


TWICE = f"""
import worker.child
worker.child.SAME_REQUEST_S = -1.0
worker.child.Stop().listen()
os.kill(os.getpid(), signal.SIGTERM); {itself("SIGTERM")}
"""


@pytest.mark.parametrize(
    ("code", "cause", "words"),
    [
        ("sys.exit(3)", Cause.EXIT_CODE, "exit code 3"),
        ("sys.exit(0)", Cause.EXIT_CODE, "exit code 0"),
        (itself("SIGSEGV"), Cause.SIGNAL, "signal SIGSEGV"),
        (itself("SIGABRT"), Cause.SIGNAL, "signal SIGABRT"),
        (itself("SIGKILL"), Cause.KILLED, "killed from outside: SIGKILL"),
        (itself("SIGTERM"), Cause.KILLED, "killed from outside: SIGTERM"),
        (TWICE, Cause.KILLED, "killed from outside: SIGTERM, twice"),
    ],
    ids=["exit 3", "exit 0", "SIGSEGV", "SIGABRT", "SIGKILL", "SIGTERM", "SIGTERM twice"],
)
def test_a_child_without_a_last_line_ended_by_its_return_code(
    monkeypatch: pytest.MonkeyPatch, code: str, cause: Cause, words: str
):
    ended = supervised(monkeypatch, code, StageBegan(stage="training"))
    assert (ended.finished, ended.cause, ended.words) == (None, cause, words)


@pytest.mark.parametrize(
    ("name", "cause"), [("SIGKILL", Cause.OUT_OF_MEMORY), ("SIGSEGV", Cause.SIGNAL), ("SIGTERM", Cause.KILLED)]
)
def test_a_kill_while_the_kernel_kills_for_memory_is_out_of_memory(
    monkeypatch: pytest.MonkeyPatch, name: str, cause: Cause
):
    kills = iter((7, 8))
    monkeypatch.setattr(supervisor, "oom_kills", lambda: next(kills))
    assert supervised(monkeypatch, itself(name)).cause is cause


def failed(cause: str | None, exit_code: int = 1) -> Finished:
    return Finished(outcome="failed", step=None, reason="why", exit_code=exit_code, cause=cause)


@pytest.mark.parametrize(
    ("line", "cause", "words"),
    [
        *((failed(each.value), each, "why") for each in Cause),
        (failed(None), Cause.ERROR, "why"),
        (failed(None, exit_code=3), Cause.REFUSED, "why"),
        (failed("one of a later version"), Cause.ERROR, "why"),
        (Finished(outcome="stopped", step=7), Cause.STOPPED, "stopped"),
    ],
)
def test_a_last_line_outweighs_the_return_code(
    monkeypatch: pytest.MonkeyPatch, line: Finished, cause: Cause, words: str
):
    ended = supervised(monkeypatch, itself("SIGKILL"), line)
    assert (ended.finished, ended.cause, ended.words) == (line, cause, words)


LEASHED = """
import worker.child
worker.child.LEASH_POLL_S, worker.child.LEASH_POLLS = 0.05, 10
worker.child.mind_the_leash()
time.sleep(2); sys.exit(0)
"""


def test_who_hangs_while_keeping_a_line_holds_the_leash_on(monkeypatch: pytest.MonkeyPatch):
    """Storage whose server is away ends no trainer."""
    monkeypatch.setattr(supervisor, "LEASH_S", 0.05)

    def hang(made: Supervisor) -> None:
        made._child.wait()

    ended = supervised(monkeypatch, LEASHED, StageBegan(stage="training"), on_line=hang)
    assert ended.words == "exit code 0"


def test_a_child_that_hangs_is_killed_and_said_to_hang(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "FIRST_STEP_LIMIT_S", 0.1)
    ended = supervised(monkeypatch, "time.sleep(60)", StageBegan(stage="training"))
    assert (ended.cause, ended.words) == (Cause.HUNG, "hung: no progress")


@pytest.mark.parametrize(("flag", "words"), [("lost", "fenced"), ("is_to_end_now", "stopped at once")])
def test_a_child_that_its_own_supervisor_kills_was_stopped(monkeypatch: pytest.MonkeyPatch, flag: str, words: str):
    ended = supervised(monkeypatch, "time.sleep(60)", lease={flag: True})
    assert (ended.cause, ended.words) == (Cause.STOPPED, words)


def test_a_child_of_a_worker_that_stops_at_once_was_stopped(monkeypatch: pytest.MonkeyPatch):
    drain = Drain()
    drain.at_once.set()
    ended = supervised(monkeypatch, "time.sleep(60)", drain=drain)
    assert (ended.cause, ended.words) == (Cause.STOPPED, "stopped at once")


def test_it_is_told_whether_an_attempt_left_a_checkpoint(monkeypatch: pytest.MonkeyPatch):
    written = CheckpointWritten(name="a.pt", step=1, tokens=2, size=3, val_loss=None)
    fewer = MicroBatch(step=0, device="cpu", before=4, windows=2, reason="full")
    assert supervised(monkeypatch, "sys.exit(3)", fewer, written).wrote_checkpoint
    assert not supervised(monkeypatch, "sys.exit(3)", fewer).wrote_checkpoint


def test_a_mapped_file_that_cannot_be_read_is_the_storages_fault():
    cause, words = cause_of(-signal.SIGBUS, out_of_memory=False)
    assert cause is Cause.STORAGE
    assert "SIGBUS" in words
