"""A worker that works in shifts: with real children, on a clock and a plug that the test sets."""

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from gptjobs import hours
from tests.conftest import eventually
from worker import shift
from worker.shift import GRACE_S, Mains, Shifts, open_log, rest

DRAINS = """
import signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print("begins", flush=True)
while len(asked) < {signals}:
    time.sleep(0.01)
print("drained by", len(asked), flush=True)
sys.exit({code})
"""
"""A stand-in for a worker: ends with its code at so many SIGTERMs."""


@dataclass
class Scene:
    """Shifts that run in a thread, as the main thread has them in a process of their own."""

    shifts: Shifts
    log: Path
    codes: "queue.SimpleQueue[int]" = field(default_factory=queue.SimpleQueue)

    def begin(self) -> None:
        threading.Thread(target=lambda: self.codes.put(self.shifts.run()), daemon=True).start()

    def says(self, text: str, times: int = 1) -> None:
        eventually(lambda: self.log.read_text().count(text) == times)


Make = Callable[..., Scene]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr(shift, "LOOK_S", 0.02)
    log = open_log(tmp_path / "log")
    made: list[Scene] = []

    def scene(why_rest: shift.Rest, signals: int = 1, code: int = 0) -> Scene:
        command = [sys.executable, "-c", DRAINS.format(signals=signals, code=code)]
        made.append(Scene(Shifts(command, why_rest, log), tmp_path / "log"))
        made[-1].begin()
        return made[-1]

    yield scene
    for each in made:
        worker = each.shifts._worker
        if worker is not None:
            worker.kill()
            worker.wait()
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


def test_a_worker_drains_when_its_hours_end_and_begins_again_with_them(make: Make) -> None:
    now = [time.struct_time((2026, 11, 28, 7, 59, 0, 5, 332, 0))]
    scene = make(rest(hours.parse("22-8"), None, lambda: now[0]))
    scene.says("begins")
    now[0] = time.struct_time((2026, 11, 28, 8, 0, 0, 5, 332, 0))
    scene.says("drained by 1")
    scene.says("resting outside the hours 22:00-8:00: until 22:00")
    eventually(lambda: scene.shifts._worker is None)
    now[0] = time.struct_time((2026, 11, 28, 22, 0, 0, 5, 332, 0))
    scene.says("begins", 2)
    assert scene.codes.empty()
    scene.shifts.stop()
    assert scene.codes.get(timeout=20) == 0


def test_outside_its_hours_nothing_runs_and_a_stop_is_immediate(make: Make) -> None:
    scene = make(lambda: "for ever")
    scene.says("resting for ever")
    scene.shifts.stop()
    assert scene.codes.get(timeout=20) == 0
    assert "begins" not in scene.log.read_text()


def test_a_worker_that_ends_by_itself_ends_the_shifts_with_its_code(make: Make) -> None:
    scene = make(lambda: None, code=7)
    scene.says("begins")
    worker = scene.shifts._worker
    assert worker is not None
    worker.send_signal(signal.SIGTERM)  # as `gptjobs worker drain` has it
    assert scene.codes.get(timeout=20) == 7


def test_a_stop_is_handed_to_the_worker_and_so_is_a_second_one(make: Make) -> None:
    scene = make(lambda: None, signals=2, code=143)
    scene.says("begins")
    scene.shifts.stop()
    eventually(lambda: scene.shifts._is_stopping)
    assert scene.codes.empty()
    scene.shifts.stop()
    assert scene.codes.get(timeout=20) == 0, "a service manager would start it again"
    scene.says("drained by 2")


def test_a_stop_while_it_drains_already_does_not_hurry_it(make: Make) -> None:
    why: list[str | None] = [None]
    scene = make(lambda: why[0], signals=2)
    scene.says("begins")
    why[0] = "now"
    scene.says("resting now")
    scene.shifts.stop()
    eventually(lambda: scene.shifts._is_stopping)
    assert scene.codes.empty()  # the worker has had one signal
    scene.shifts.stop()
    assert scene.codes.get(timeout=20) == 0


def test_another_reason_to_rest_is_told_and_hurries_nothing(make: Make) -> None:
    why: list[str | None] = [None]
    scene = make(lambda: why[0], signals=2)
    scene.says("begins")
    why[0] = "at first"
    scene.says("resting at first")
    why[0] = "at last"
    scene.says("resting at last")
    assert scene.shifts._worker is not None
    scene.shifts.stop()
    scene.shifts.stop()
    assert scene.codes.get(timeout=20) == 0


def test_a_worker_that_was_killed_ends_the_shifts_as_a_shell_tells_it(make: Make) -> None:
    scene = make(lambda: None)
    scene.says("begins")
    worker = scene.shifts._worker
    assert worker is not None
    worker.kill()
    assert scene.codes.get(timeout=20) == 128 + signal.SIGKILL


def test_hours_that_begin_again_while_it_drains_start_it_again_once_it_has(make: Make) -> None:
    why: list[str | None] = [None]
    scene = make(lambda: why[0], signals=2)
    scene.says("begins")
    why[0] = "now"
    scene.says("resting now")
    why[0] = None
    worker = scene.shifts._worker
    assert worker is not None
    worker.send_signal(signal.SIGTERM)
    scene.says("begins", 2)
    assert scene.codes.empty()


class Plug:
    """A plug and a clock that a test holds."""

    def __init__(self, is_in: bool) -> None:
        self.is_in, self.now = is_in, 0.0
        self.mains = Mains(lambda: self.is_in, lambda: self.now)

    def after(self, seconds: float, is_in: bool) -> bool:
        self.now += seconds
        self.is_in = is_in
        return self.mains.is_on()


def test_a_plug_that_is_moved_drains_nothing() -> None:
    plug = Plug(True)
    assert plug.after(15, False)
    assert plug.after(GRACE_S - 1, False)
    assert plug.after(1, True)
    assert plug.after(GRACE_S - 1, False)  # the grace begins anew
    assert plug.after(GRACE_S - 1, False)
    assert not plug.after(1, False)


def test_power_that_comes_back_counts_once_it_stays() -> None:
    plug = Plug(True)
    plug.after(15, False)
    assert not plug.after(GRACE_S, False)
    assert not plug.after(15, True)
    assert plug.after(GRACE_S, True)


def test_what_is_found_at_the_start_counts_at_once() -> None:
    assert not Plug(False).mains.is_on()


@pytest.mark.parametrize(
    ("battery", "is_plugged"),
    [(None, True), (SimpleNamespace(power_plugged=True), True), (SimpleNamespace(power_plugged=False), False),
     (SimpleNamespace(power_plugged=None), True)],
)  # fmt: skip
def test_a_host_is_on_battery_only_where_it_says_so(
    battery: object, is_plugged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert shift.is_plugged() is is_plugged


def test_on_battery_it_rests_within_its_hours_too(monkeypatch: pytest.MonkeyPatch) -> None:
    always = time.struct_time((2026, 11, 28, 23, 0, 0, 5, 332, 0))
    assert rest(hours.parse("22-8"), Plug(True).mains, lambda: always)() is None
    assert rest(hours.parse("22-8"), Plug(False).mains, lambda: always)() == "on battery: until it is plugged in"
    assert rest(None, None)() is None


def test_power_that_went_outside_the_hours_starts_no_worker_when_they_begin() -> None:
    plug, now = Plug(True), [time.struct_time((2026, 11, 28, 21, 0, 0, 5, 332, 0))]
    why = rest(hours.parse("22-8"), plug.mains, lambda: now[0])
    plug.is_in = False
    assert "outside" in (why() or "")
    plug.now += GRACE_S
    why()
    now[0] = time.struct_time((2026, 11, 28, 22, 0, 0, 5, 332, 0))
    assert "on battery" in (why() or "")


def test_a_log_that_cannot_be_written_is_said_in_a_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "worker.shift", "--log", str(tmp_path / "none" / "log")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == f"error: the log cannot be written: {tmp_path / 'none' / 'log'}: No such file or directory\n"


def test_a_log_makes_room_before_it_grows_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shift, "LOG_BYTES", 1000)
    log = open_log(tmp_path / "worker.log")
    for number in range(1000):
        log.info("%s", f"line {number:04}")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    files = sorted(each.name for each in tmp_path.iterdir())
    assert files == ["worker.log", *(f"worker.log.{number}" for number in range(1, shift.OLDER_LOGS + 1))]
    assert all(each.stat().st_size <= 1000 for each in tmp_path.iterdir())
    assert (tmp_path / "worker.log").read_text().endswith("line 0999\n")


def test_a_line_that_is_no_text_is_kept_as_far_as_it_is(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    shifts = Shifts([sys.executable, "-c", r"import os; os.write(2, b'caf\xe9 100%s\n')"], lambda: None, log)
    assert shifts.run() == 0
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    assert (tmp_path / "log").read_text() == "caf� 100%s\n"
