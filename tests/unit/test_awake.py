"""A Mac stays awake while a job runs: with a stand-in for caffeinate, which ends with its process as that does."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import eventually
from tests.unit.test_supervisor import supervised
from worker.awake import awake_for

STAND_IN = """#!{python}
import os, sys, time
with open({asked!r}, "w") as asked:
    print(os.getpid(), *sys.argv[1:], file=asked)
while True:
    os.kill(int(sys.argv[-1]), 0)
    time.sleep(0.02)
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in writes its pid and what it is asked."""
    found = tmp_path / "asked"
    (tmp_path / "caffeinate").write_text(STAND_IN.format(python=sys.executable, asked=str(found)))
    (tmp_path / "caffeinate").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return found


@pytest.fixture
def job() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def words(asked: Path) -> list[str]:
    return eventually(lambda: asked.read_text().split() if asked.exists() else [])


def test_a_mac_is_kept_awake_for_a_job_and_no_longer(
    asked: Path, job: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with awake_for(job.pid):
        pid, *options = words(asked)
        assert options == ["-is", "-w", str(job.pid)]
        assert is_there(int(pid))
    assert not is_there(int(pid))


def test_a_supervisor_keeps_a_mac_awake_while_its_child_runs(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    wait_for_it = f"while not os.path.exists({str(asked)!r}): time.sleep(0.02)"
    ended = supervised(monkeypatch, f"{wait_for_it}\nos._exit(3)")
    assert ended.words == "exit code 3"
    pid, *options = words(asked)
    assert options[:2] == ["-is", "-w"]
    assert not is_there(int(pid))


def test_elsewhere_nothing_is_started(
    asked: Path, job: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    with awake_for(job.pid):
        pass
    assert not asked.exists()


def test_a_mac_without_caffeinate_trains_all_the_same(
    job: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setenv("PATH", "/nowhere")
    with awake_for(job.pid):
        assert job.poll() is None
