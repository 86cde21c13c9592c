"""`watch`, `logs -f`, `wait` and `--follow`, against a real server; the test itself holds the job's lease."""

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gptjobs.job import JobSpec, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.leases import Lease, LeaseStore
from gptjobs.presence import Presence
from tests.conftest import Commands, eventually
from tests.terminal import COLUMNS, LINES, Terminal

SPEC = JobSpec(id="3f9a00000001", kind="train", name="owls", submitted_at=1.0)
TRAIN = ("submit", "train", "--model", "nano", "--data", "sources/text.md", "--steps", "100")


class Trained:
    """A job that the test trains by hand."""

    def __init__(self, redis_url: str, spec: JobSpec = SPEC) -> None:
        self.store, self.id = LeaseStore(redis_url), spec.id
        self.store.submit(spec)

    def claim(self, worker: str = "worker@host") -> Lease:
        serial = self.store.get(self.id).serial
        lease = self.store.claim(self.id, serial, floor=0, nonce=worker, worker=worker, device="cpu")
        assert lease is not None
        self.lease = lease
        return lease

    def report(self, step: int, **values: Any) -> None:
        newest = {
            "stage": "training", "step": step, "end_step": 100, "tokens": 512 * step, "train_loss": 5 - step / 50,
            "val_loss": 5.5, "eval_context": 64, "learning_rate": 1e-3, "grad_norm": 1.0, "tokens_per_s": 1e4,
            "eta_s": 9.0,
        }  # fmt: skip
        self.store.renew(self.lease, {**newest, **values})

    def end(self, state: JobState, reason: str) -> None:
        self.store.finish(self.lease, Outcome(state=state, reason=reason), fruitless={}, progress=None)


@pytest.fixture
def job(redis_url: str) -> Trained:
    return Trained(redis_url)


def stopped(process: "subprocess.Popen[bytes]") -> tuple[int, str, str]:
    """The exit code and what was said, after Ctrl-C."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
def terminal(gptjobs: Commands) -> "Iterator[Callable[..., Terminal]]":
    """Starts a command in a terminal."""
    started: list[Terminal] = []

    def start(*arguments: str, **variables: str) -> Terminal:
        started.append(Terminal(gptjobs, *arguments, **variables))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def piped(gptjobs: Commands) -> "Iterator[Callable[..., subprocess.Popen[bytes]]]":
    """Starts a command whose output is read by the test."""
    with ExitStack() as stack:

        def start(*arguments: str) -> "subprocess.Popen[bytes]":
            process = gptjobs.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def test_watch_shows_a_bar_that_moves_and_leaves_the_last_picture(
    terminal: Callable[..., Terminal], job: Trained
) -> None:
    shown = terminal("watch", "owls")
    eventually(lambda: "owls  queued" in shown.text)
    job.claim()
    job.report(10)
    eventually(lambda: "step 10 of 100  10%" in shown.text)
    job.report(50)
    eventually(lambda: "step 50 of 100  50%  9s left" in shown.text)
    job.report(100)
    job.end(JobState.FINISHED, "finished")
    assert shown.end() == 0
    left = shown.left_behind
    assert left[0].startswith("owls  finished  3f9a00000001, attempt 1 on worker@host")
    assert "100%" in left[1] and any("● validation at context 64" in line for line in left)
    assert len(left) < LINES and max(map(len, left)) <= COLUMNS


@pytest.mark.parametrize(
    ("state", "reason", "code"),
    [(JobState.FAILED, "no space", 1), (JobState.DIVERGED, "not finite", 1), (JobState.CANCELLED, "cancelled", 10)],
)
def test_watch_ends_with_the_exit_code_of_the_job(
    gptjobs: Commands, terminal: Callable[..., Terminal], job: Trained, state: JobState, reason: str, code: int
) -> None:
    job.claim()
    job.report(10)
    job.end(state, reason)
    shown = terminal("watch", "owls")
    assert shown.end() == code
    assert any(line.startswith(f"owls  {state}") for line in shown.left_behind)
    done = gptjobs("watch", "owls")
    assert done.returncode == code
    assert f"owls  {state}" in done.stdout and reason in done.stderr


def test_watch_piped_prints_a_line_when_something_changes(
    piped: Callable[..., "subprocess.Popen[bytes]"], job: Trained
) -> None:
    process = piped("watch", "owls")
    assert process.stdout is not None
    assert process.stdout.readline() == b"owls  queued\n"
    job.claim()
    job.report(10)
    lines = iter(process.stdout.readline, b"")
    assert any(b"owls  running  step 10/100, train loss 4.8000, val loss 5.5000, lr 0.001" in line for line in lines)
    job.end(JobState.QUEUED, "worker@host stopped")
    assert next(lines).startswith(b"owls  queued  worker@host stopped, step 10/100")
    job.claim("other@host")
    job.end(JobState.FINISHED, "target")
    assert [line for line in lines if b"finished" in line] != []
    assert process.wait(30) == 0


@pytest.mark.parametrize("arguments", [("watch", "owls"), ("logs", "-f", "owls"), ("wait", "owls")], ids=" ".join)
def test_ctrl_c_detaches_and_says_how_to_come_back(
    terminal: Callable[..., Terminal], job: Trained, arguments: tuple[str, ...]
) -> None:
    def connections() -> dict[str, int]:
        """Each with the seconds since it was made."""
        return {each["id"]: int(each["age"]) for each in job.store._redis.client_list()}

    job.claim()
    job.report(10)
    before = connections()
    shown = terminal(*arguments)
    eventually(lambda: any(age for id, age in connections().items() if id not in before))
    shown.press_ctrl_c()
    assert shown.end() == 130
    back = {"watch": f"watch {job.id}", "logs": f"logs -f {job.id}", "wait": "wait owls"}[arguments[0]]
    assert shown.text.rstrip().endswith(f"detached; nothing was stopped. To come back: gptjobs {back}")
    assert job.store.get(job.id).state is JobState.RUNNING


def test_ctrl_c_leaves_the_terminal_as_it_was(terminal: Callable[..., Terminal], job: Trained) -> None:
    job.claim()
    job.report(10)
    shown = terminal("watch", "owls")
    eventually(lambda: "10%" in shown.text)
    shown.press_ctrl_c()
    assert shown.end() == 130
    for taken, given_back in (("\x1b[?1049h", "\x1b[?1049l"), ("\x1b[?25l", "\x1b[?25h")):
        assert shown.raw.rindex(given_back) > shown.raw.rindex(taken)
    assert shown.left_behind[0].startswith("owls  running")


def test_watch_without_a_job_shows_all_jobs_and_the_workers(
    terminal: Callable[..., Terminal], job: Trained, redis_url: str
) -> None:
    Trained(redis_url, JobSpec(id="3f9a00000002", kind="train", name="larks", submitted_at=2.0))
    offered = {"queues": ["cpu"], "slots": ["cpu"], "busy": 1, "jobs": [job.id], "started_at": 0.0}
    job.store.announce(Presence(name="worker@host", host="host", version="0.1.0", **offered))  # type: ignore[arg-type]
    job.claim()
    job.report(10)
    shown = terminal("watch")
    eventually(lambda: re.search(r"owls +running +━+╸?─+ +10/100", shown.text))
    assert "1 worker, 1 of 1 slots busy · 1 queued · 1 running" in shown.text
    job.report(50)
    eventually(lambda: re.search(r"owls +running +━+╸?─+ +50/100", shown.text))
    shown.press_ctrl_c()
    assert shown.end() == 130
    assert any(line.startswith("larks") for line in shown.left_behind)


def test_watch_of_all_piped_has_a_line_a_change(piped: Callable[..., "subprocess.Popen[bytes]"], job: Trained) -> None:
    process = piped("watch")
    assert process.stdout is not None
    assert process.stdout.readline() == b"owls  queued\n"
    job.claim()
    job.report(10)
    assert any(b"owls  running  step 10/100" in line for line in iter(process.stdout.readline, b""))
    assert stopped(process)[0] == 130


def test_a_terminal_that_can_do_nothing_gets_plain_lines(terminal: Callable[..., Terminal], job: Trained) -> None:
    job.claim()
    job.end(JobState.FINISHED, "finished")
    shown = terminal("watch", "owls", TERM="dumb")
    assert shown.end() == 0
    assert shown.raw == "owls  finished\r\n"


def test_no_colour_is_shown_where_none_is_wanted(terminal: Callable[..., Terminal], job: Trained) -> None:
    job.claim()
    job.report(10)
    job.end(JobState.FINISHED, "finished")
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9]m|\x1b\[[0-9;]*9[0-9]m")
    shown = terminal("watch", "owls")
    assert shown.end() == 0 and colour.search(shown.raw)
    shown = terminal("watch", "owls", NO_COLOR="1")
    assert shown.end() == 0 and not colour.search(shown.raw)


def test_logs_follow_half_written_characters_and_both_attempts(
    piped: Callable[..., "subprocess.Popen[bytes]"], job: Trained, layout: Layout
) -> None:
    process = piped("logs", "-f", "owls")
    assert process.stdout is not None and process.stderr is not None
    assert process.stderr.readline() == b"no log yet: the job is queued\n"
    first, second = (layout.log_file("train", SPEC.id, 1e9 + each) for each in (0, 10))
    job.claim()
    assert process.stderr.readline() == b"attempt 1 on worker@host, cpu\n"
    snow = "snow ☃\n".encode()
    with first.open("ab", buffering=0) as log:
        log.write(snow[:6])
        assert process.stdout.read(6) == snow[:6]
        log.write(snow[6:])
        assert process.stdout.readline() == snow[6:]
    job.end(JobState.QUEUED, "lost worker@host")
    assert process.stderr.readline() == b"the job is queued: lost worker@host\n"
    job.claim("other@host")
    assert process.stderr.readline() == b"attempt 2 on other@host, cpu\n"
    second.write_text("second attempt\n")
    assert process.stdout.readline() == b"second attempt\n"
    with second.open("a") as log_of_second:
        log_of_second.write("the last line\n")
    job.end(JobState.FAILED, "no space")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, b"the last line\n")
    assert b"error: job owls failed: no space" in err


def test_logs_without_the_root_say_where_logs_lie(gptjobs: Commands, job: Trained, tmp_path: Path) -> None:
    laptop = tmp_path / "laptop"
    laptop.mkdir()
    done = gptjobs("logs", "owls", GPTJOBS_ROOT=str(laptop))
    assert done.returncode == 0
    assert done.stderr == f"no log here: logs lie in the storage root, which {laptop} is not; the job is queued\n"


def test_watch_without_the_root_draws_what_it_saw_in_redis(
    terminal: Callable[..., Terminal], job: Trained, tmp_path: Path
) -> None:
    laptop = tmp_path / "laptop"
    laptop.mkdir()
    job.claim()
    shown = terminal("watch", "owls", GPTJOBS_ROOT=str(laptop))
    for step in (10, 20, 30):
        job.report(step)
        eventually(lambda step=step: f"step {step} of 100" in shown.text)  # type: ignore[misc]
    job.end(JobState.FINISHED, "finished")
    assert shown.end() == 0
    left = "\n".join(shown.left_behind)
    assert left.count("●") == 2  # the legend's, and one evaluation, however often Redis showed it
    assert re.search("[⠁-⣿]", left) and "── log" not in left


def test_redis_away_for_a_while_is_said_and_waited_for(
    piped: Callable[..., "subprocess.Popen[bytes]"], job: Trained
) -> None:
    process = piped("watch", "owls")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"owls  queued\n"
    job.store._redis.config_set("requirepass", "another")
    try:
        job.store._redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert process.stderr.readline().endswith(b"refuses the user or the password; waiting on, Ctrl-C detaches\n")
    finally:
        job.store._redis.config_set("requirepass", "secret")
    assert process.stderr.readline() == b"Redis has it again\n"
    job.store.ask("cancel", job.id, "cancelled")
    assert process.wait(30) == 10


def test_submit_and_follow_prints_the_id_then_watches(
    piped: Callable[..., "subprocess.Popen[bytes]"], redis_url: str
) -> None:
    process = piped(*TRAIN, "--name", "larks", "--follow")
    assert process.stdout is not None
    id = process.stdout.readline().decode().strip()
    assert re.fullmatch("[0-9a-f]{12}", id)
    assert process.stdout.readline() == b"larks  queued\n"
    LeaseStore(redis_url).ask("cancel", id, "cancelled")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 10
    assert out == b"larks  cancelled\n"
    assert b"queued. Next" not in err


@pytest.mark.parametrize("option", ["-q", "--json", "--dry-run"])
def test_following_and_printing_alone_are_refused_together(gptjobs: Commands, option: str) -> None:
    done = gptjobs(*TRAIN, "--follow", option)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--follow shows the job" in done.stderr and "hint:" in done.stderr
    assert gptjobs.ok("list", "--json") == gptjobs.ok("list", "--json", "--state", "queued")
