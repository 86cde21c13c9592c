"""A child of the supervisor as a real process: its lines, its leash, its signals."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from gptjobs import progress
from gptjobs.progress import Progress, StageBegan
from tests.conftest import eventually
from worker.child import Stop

LIMIT_S = 20.0
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a script as the supervisor starts a child: in a group of its own, on pipes."""
    started: list[subprocess.Popen[str]] = []

    def begin(script: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", "from worker import child\n" + script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        with process, suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def hold(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write(".")
    process.stdin.flush()


def test_a_stray_print_never_reaches_the_lines(start: Start) -> None:
    process = start("""
import os, sys
from gptjobs.progress import StageBegan
print("before", flush=True)
report = child.Report()
print("stray from Python", flush=True)
os.write(1, b"stray from C\\n")
os.system("echo stray from a child")
report(StageBegan(stage="training"))
sys.stdout.write("stray without an end")
report(StageBegan(stage="saving"))
""")
    out, err = process.communicate(timeout=LIMIT_S)
    lines = out.splitlines()
    assert lines[0] == "before"
    assert [progress.decode(line) for line in lines[1:]] == [StageBegan(stage="training"), StageBegan(stage="saving")]
    for stray in ("stray from Python", "stray from C", "stray from a child", "stray without an end"):
        assert stray in err
    assert process.returncode == 0


def test_a_line_with_values_that_json_has_not_can_be_read(start: Start) -> None:
    process = start("""
from gptjobs.progress import Progress
child.Report()(Progress(step=1, end_step=2, tokens=3, train_loss=float("nan"), learning_rate=0.5,
                        grad_norm=float("inf"), tokens_per_s=1.0, eta_s=None))
""")
    out, _ = process.communicate(timeout=LIMIT_S)
    line = progress.decode(out)
    assert isinstance(line, Progress)
    assert (line.step, line.train_loss, line.grad_norm) == (1, None, None)


def test_the_log_is_on_standard_error(start: Start) -> None:
    out, err = start("child.log('step 5')").communicate(timeout=LIMIT_S)
    assert (out, err) == ("", "step 5\n")


LEASHED = """
import signal, subprocess
subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
print("ready", flush=True)
child.LEASH_POLL_S, child.LEASH_POLLS = {poll_s}, {polls}
child.mind_the_leash()
while True:
    signal.pause()
"""


def assert_killed_with_its_group(process: "subprocess.Popen[str]") -> None:
    assert process.wait(LIMIT_S) == -signal.SIGKILL
    # the end of standard output: no one of the group holds it any more
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], LIMIT_S)[0], "what the child started lives on"
    assert process.stdout.read() == ""


def test_the_end_of_standard_input_kills_the_process_group(start: Start) -> None:
    process = start(LEASHED.format(poll_s=1.0, polls=1000))
    assert line_of(process) == "ready"
    assert process.stdin is not None
    process.stdin.close()
    assert_killed_with_its_group(process)


def test_a_leash_that_no_one_holds_kills_the_process_group(start: Start) -> None:
    process = start(LEASHED.format(poll_s=0.05, polls=4))
    assert line_of(process) == "ready"
    assert_killed_with_its_group(process)


def test_a_leash_that_is_held_kills_no_one(start: Start) -> None:
    """For longer than it may be silent."""
    process = start(LEASHED.format(poll_s=0.2, polls=10))
    assert line_of(process) == "ready"
    for _ in range(30):
        hold(process)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)


def test_a_child_on_a_leash_ends_by_itself_when_it_is_done(start: Start) -> None:
    process = start("child.mind_the_leash()\nprint('done', flush=True)")
    assert process.wait(LIMIT_S) == 0
    assert process.stdout is not None and process.stderr is not None
    assert (process.stdout.read(), process.stderr.read()) == ("done\n", "")


LISTENING = """
import threading
stop = child.Stop().listen()
print("ready", flush=True)
while not stop.requested:
    threading.Event().wait(0.01)
print("stopping", flush=True)
if {saves_long}:
    while True:
        threading.Event().wait(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_first_signal_only_asks(start: Start, number: signal.Signals) -> None:
    process = start(LISTENING.format(saves_long=False))
    assert line_of(process) == "ready"
    process.send_signal(number)
    assert line_of(process) == "stopping"
    assert process.wait(LIMIT_S) == 0


def test_a_second_request_is_immediate(start: Start) -> None:
    process = start(LISTENING.format(saves_long=True))
    assert line_of(process) == "ready"
    os.kill(process.pid, signal.SIGTERM)
    assert line_of(process) == "stopping"

    def ended_by_another() -> bool:
        os.kill(process.pid, signal.SIGTERM)
        return process.poll() is not None

    eventually(ended_by_another, LIMIT_S)
    assert process.wait(LIMIT_S) == 128 + signal.SIGTERM


def test_what_comes_right_after_a_request_is_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    stop = Stop()
    stop._on_signal(signal.SIGTERM, None)
    stop._on_signal(signal.SIGTERM, None)
    assert stop.requested and not ended


def test_a_child_listens_before_it_loads_anything_heavy(start: Start) -> None:
    process = start("import sys\nprint(sorted({'torch', 'numpy', 'celery', 'redis'} & set(sys.modules)))")
    assert process.communicate(timeout=LIMIT_S)[0] == "[]\n"
