"""Workers that rest, and workers that are installed: real workers, a clock and service managers that tests set."""

import os
import platform
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gptjobs import hours
from gptjobs.hours import Hours
from gptjobs.job import JobState
from gptjobs.store import Store
from tests.conftest import Commands, eventually
from tests.e2e.test_control import trains
from tests.e2e.test_loss_of_hosts import newest_step, submit, trainers
from worker import shift
from worker.shift import Shifts, open_log, rest


@dataclass
class Night:
    """A worker in its shifts, by a clock that the test sets."""

    clock: list[time.struct_time]
    codes: "queue.SimpleQueue[int]"
    shifts: Shifts

    def is_it(self, hour: int) -> None:
        self.clock[0] = time.struct_time((2026, 11, 28, hour, 0, 0, 5, 332, 0))


@pytest.fixture
def night(gptjobs: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Night]:
    for name, value in gptjobs.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(shift, "LOOK_S", 0.1)
    clock = [time.struct_time((2026, 11, 28, 23, 0, 0, 5, 332, 0))]
    log = open_log(tmp_path / "worker.log")
    command = [sys.executable, "-m", "worker", "--leash", "--device", "cpu"]
    shifts = Shifts(command, rest(hours.parse("22-8"), None, lambda: clock[0]), log)
    codes: queue.SimpleQueue[int] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: codes.put(shifts.run()))
    thread.start()
    yield Night(clock, codes, shifts)
    shifts.stop()
    thread.join(60)
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


def test_a_job_waits_with_a_checkpoint_while_its_worker_rests_and_goes_on_with_the_next_night(
    gptjobs: Commands, night: Night, store: Store
) -> None:
    job = submit(gptjobs)
    eventually(lambda: trains(store, job))
    night.is_it(8)
    eventually(lambda: store.get(job).state is JobState.QUEUED and not store.workers())
    stopped_at = newest_step(gptjobs, job)
    assert stopped_at >= 10
    assert not trainers(job)
    night.is_it(22)
    eventually(lambda: trains(store, job, stopped_at + 1))
    assert store.get(job).attempt == 2
    assert [each.name.partition("@")[0] for each in store.workers()] == ["worker"]
    assert night.codes.empty()
    night.shifts.stop()
    assert night.codes.get(timeout=60) == 0
    assert store.get(job).state is JobState.QUEUED


def around(now: float, first_h: float, last_h: float) -> str:
    """Hours that begin and end so long from now."""
    at = [time.localtime(now + each * 3600) for each in (first_h, last_h)]
    return str(Hours(begin=at[0].tm_hour * 60 + at[0].tm_min, end=at[1].tm_hour * 60 + at[1].tm_min))


def test_a_worker_that_is_started_within_its_hours_takes_jobs_and_writes_its_log(
    gptjobs: Commands, store: Store, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    started = gptjobs.start(
        "worker", "start", "--device", "cpu", "--name", "owl", "--hours", around(time.time(), -2, 2), "--log", str(log)
    )
    try:
        eventually(store.workers)
        eventually(lambda: "ready" in log.read_text())
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 0
        assert not store.workers()
    finally:
        started.kill()
        started.wait()


def test_a_worker_that_is_started_outside_its_hours_rests_even_without_redis(gptjobs: Commands, tmp_path: Path) -> None:
    log = tmp_path / "log"
    gptjobs.environment["GPTJOBS_REDIS_URL"] = "redis://127.0.0.1:1/0"
    started = gptjobs.start("worker", "start", "--hours", around(time.time(), 2, 4), "--log", str(log))
    try:
        eventually(lambda: log.exists() and "resting outside the hours" in log.read_text())
        assert started.poll() is None
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 0
    finally:
        started.kill()
        started.wait()


def test_a_worker_drains_when_whoever_minds_its_shifts_is_killed(gptjobs: Commands, store: Store) -> None:
    started = gptjobs.start("worker", "start", "--device", "cpu", "--hours", around(time.time(), -2, 2))
    eventually(store.workers)
    job = submit(gptjobs)
    eventually(lambda: trains(store, job))
    started.kill()
    started.wait()
    eventually(lambda: not store.workers())
    assert store.get(job).state is JobState.QUEUED
    assert newest_step(gptjobs, job) >= 10


FALLS = """
import sys
from worker import rescue
from worker.__main__ import main

def fall(self, now):
    raise RuntimeError("a fault of ours")

rescue.Rescue._look = fall
sys.argv = ["worker", "--device", "cpu"]
sys.exit(main())
"""


def test_a_worker_that_lost_a_thread_ends_as_one_that_fell(gptjobs: Commands) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FALLS], env=gptjobs.environment, capture_output=True, text=True, timeout=90
    )
    assert "a fault of ours" in done.stderr
    assert done.returncode == 1


SYSTEMCTL = """#!{python}
import os, pathlib, re, shlex, signal, subprocess, sys, time
here = pathlib.Path({folder!r})
pid_file, (*_, word) = here / "pid", [each for each in sys.argv[1:] if not each.startswith("--")][:1]

def pid():
    found = pid_file.read_text() if pid_file.exists() else "0"
    state = subprocess.run(["ps", "-o", "stat=", "-p", found], capture_output=True, text=True).stdout.strip()
    return int(found) if state and state[0] != "Z" else 0

def stop():
    if pid():
        os.kill(pid(), signal.SIGTERM)
        while pid():
            time.sleep(0.05)

if word in ("restart", "stop"):
    stop()
if word == "restart":
    unit = (here / "home/.config/systemd/user" / sys.argv[-1]).read_text()
    settings = dict(re.findall(r"^(\\w+)=(.*)$", unit, re.M))
    environment = dict(each.partition("=")[::2] for each in shlex.split(open(settings["EnvironmentFile"]).read()))
    first = os.fork()
    if not first:  # an orphan, which init reaps
        log = open(here / "journal", "ab")
        started = subprocess.Popen(
            shlex.split(settings["ExecStart"]), env={{**environment, {kept}}}, cwd=settings["WorkingDirectory"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )
        pid_file.write_text(str(started.pid))
        os._exit(0)
    os.waitpid(first, 0)
if word == "is-active":
    sys.exit(0 if pid() else 3)
"""
"""A stand-in that runs a unit's command by its environment file, as systemd would."""


@pytest.fixture
def home(gptjobs: Commands, tmp_path: Path) -> Iterator[Path]:
    """With stand-ins for systemctl and loginctl; whatever they run is gone when the test ends."""
    if platform.system() == "Darwin":
        pytest.skip("there launchd would be asked")
    kept = ", ".join(f"{name!r}: {os.environ[name]!r}" for name in ("PYTHONPATH",) if name in os.environ)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/systemctl").write_text(SYSTEMCTL.format(python=sys.executable, folder=str(tmp_path), kept=kept))
    (tmp_path / "bin/loginctl").write_text("#!/bin/sh\nexit 1\n")
    for each in (tmp_path / "bin").iterdir():
        each.chmod(0o755)
    gptjobs.environment |= {"HOME": str(tmp_path / "home"), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    yield tmp_path / "home"
    subprocess.run([tmp_path / "bin/systemctl", "stop"], timeout=120, check=True)


def test_an_installed_worker_takes_jobs_changes_in_place_and_is_gone_when_uninstalled(
    gptjobs: Commands, home: Path, store: Store
) -> None:
    done = gptjobs("worker", "install", "--name", "box", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "is up and offers cpu" in done.stderr
    assert "sudo loginctl enable-linger" in done.stderr
    unit = home / ".config/systemd/user/gptjobs-box.service"
    assert done.stdout.strip() == str(unit)
    job = submit(gptjobs)
    eventually(lambda: trains(store, job))

    again = gptjobs("worker", "install", "--name", "box", "--device", "cpu", "--slots", "2")
    assert again.returncode == 0, again.stderr
    assert "is up and offers cpu cpu" in again.stderr
    assert "its jobs write checkpoints first" in again.stderr
    eventually(lambda: store.get(job).attempt == 2 and trains(store, job))

    gone = gptjobs("worker", "uninstall", "--name", "box")
    assert gone.returncode == 0, gone.stderr
    assert store.get(job).state is JobState.QUEUED
    assert not store.workers()
    assert not unit.exists()
    assert not list((home / ".config/gptjobs").iterdir())
    assert gptjobs("worker", "uninstall", "--name", "box").returncode == 4


def test_a_dry_run_shows_the_unit_and_changes_nothing(gptjobs: Commands, home: Path) -> None:
    gptjobs.environment["GPTJOBS_REDIS_URL"] = "redis://:hush@nowhere.invalid:6379/0"
    done = gptjobs("worker", "install", "--dry-run", "--hours", "22-8", "--on-ac-only")
    assert done.returncode == 0, done.stderr
    assert "worker start --name worker --hours 22:00-8:00 --on-ac-only\n" in done.stdout
    assert "GPTJOBS_REDIS_URL" in done.stderr
    assert "hush" not in done.stdout + done.stderr
    assert not home.exists()


def test_nothing_is_installed_for_a_redis_that_does_not_answer(gptjobs: Commands, home: Path) -> None:
    gptjobs.environment["GPTJOBS_REDIS_URL"] = "redis://127.0.0.1:1/0"
    assert gptjobs("worker", "install").returncode == 5
    assert not home.exists()
