"""`gptjobs up` and the demo, as a user starts them: no Redis, no Docker, an empty folder."""

import base64
import json
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptjobs.layout import Layout
from tests.conftest import VARIABLES, eventually

SMALL = (
    "--model", "nano", "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--batch-size", "4", "--block-size", "32",
    "--eval-tokens", "512",
)  # fmt: skip
OWN_VARIABLES = (*VARIABLES, "GPTJOBS_ROOT", "GPTJOBS_REDIS_URL")


class Root:
    """A folder in which `gptjobs` is typed, with nothing in the environment."""

    def __init__(self, layout: Layout) -> None:
        self.path = layout.root
        self._environment = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
        self._environment["OMP_NUM_THREADS"] = "1"
        self.processes: list[subprocess.Popen[bytes]] = []

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "gptjobs", *arguments],
            cwd=self.path, env=self._environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def up(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """Started, and its worker there."""
        with (self.path / "up.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "gptjobs", "up", "--device", "cpu", *arguments],
                cwd=self.path, env=self._environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        eventually(lambda: self.log().count("next ") == len(self.processes))
        eventually(lambda: json.loads(self.run("worker", "list", "--json"))["workers"])
        return process

    def log(self) -> str:
        return (self.path / "up.log").read_text()

    def job(self, reference: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("show", reference, "--json"))
        return found


@pytest.fixture
def root(layout: Layout) -> Iterator[Root]:
    made = Root(layout)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def test_up_stopped_in_mid_job_and_started_again_goes_on_where_it_was(root: Root) -> None:
    first = root.up("--no-flower")
    url = (root.path / ".gptjobs" / "redis-url").read_text()
    long = root.run("submit", "train", "-q", *SMALL, "--data", "sources/text.md", "--steps", "100000")
    waiting = root.run("submit", "train", "-q", *SMALL, "--data", "sources/text.md", "--steps", "5")
    eventually(lambda: (root.job(long)["step"] or 0) >= 20)
    first.send_signal(signal.SIGINT)
    assert first.wait(90) == 0

    root.up("--no-flower")
    assert (root.path / ".gptjobs" / "redis-url").read_text() == url
    eventually(lambda: (shown := root.job(long))["attempt"] == 2 and shown["state"] == "running")
    attempts = sorted((root.path / "outputs" / long / "attempts").glob("*.json"))
    start_step = json.loads(attempts[-1].read_bytes())["start_step"]
    assert start_step >= 20
    eventually(lambda: (root.job(long)["step"] or 0) > start_step)
    root.run("cancel", long)
    root.run("wait", waiting, "--timeout", "100")


def test_up_that_was_killed_and_is_started_again_ends_what_it_left_and_loses_nothing(root: Root) -> None:
    first = root.up("--no-flower")
    (pid,) = ((root.path / ".gptjobs" / "server.lock").read_text(),)
    waiting = root.run("submit", "train", "-q", *SMALL, "--data", "sources/text.md", "--device", "cuda", "--steps", "5")
    first.kill()
    first.wait()
    os.kill(int(pid), 0)  # the server is still there

    root.up("--no-flower")
    assert (root.path / ".gptjobs" / "server.lock").read_text() != pid
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout
    assert state[:1] in ("", "Z")  # gone, or only not yet reaped
    assert root.job(waiting)["state"] == "queued"


def test_only_the_user_can_read_the_password_and_it_is_not_shown(root: Root) -> None:
    root.up("--no-flower")
    file = root.path / ".gptjobs" / "redis-url"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    match = re.fullmatch(r"redis://:([^@]{20,})@127\.0\.0\.1:\d+/0", file.read_text())
    assert match is not None
    assert match[1] not in root.log()
    listed = subprocess.run(["ps", "-axww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    assert match[1] not in listed


def test_a_second_up_in_the_same_root_is_refused(root: Root) -> None:
    root.up("--no-flower")
    with pytest.raises(AssertionError, match=r"runs in .* already"):
        root.run("up", "--no-flower")


def test_up_starts_flower_and_says_where_with_the_password(root: Root) -> None:
    root.up()
    match = eventually(lambda: re.search(r"Flower  http://([^@]+)@(127\.0\.0\.1:\d+)/runs", root.log()))
    login, address = match[1], match[2]
    assert login == (root.path / ".gptjobs" / "flower-auth").read_text()
    job = root.run("submit", "train", "-q", *SMALL, "--data", "sources/text.md", "--steps", "100000", "--name", "seen")

    def task() -> dict[str, Any]:
        request = urllib.request.Request(f"http://{address}/api/task/info/{job}")
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                found: dict[str, Any] = json.load(answer)
        except OSError:
            return {}
        return found

    shown = eventually(lambda: found if (found := task()).get("step") else None)
    assert (shown["state"], shown["job"], shown["end_step"], shown["device"]) == ("STARTED", "seen", 100000, "cpu")
    assert shown["train_loss"] > 0 and shown["tokens_per_s"] > 0
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://{address}/api/tasks", timeout=10)
    root.run("cancel", job)
    eventually(lambda: task().get("state") == "REVOKED")


def test_the_demo_trains_resumes_and_stops_what_it_started(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-m", "gptjobs", "demo", "--dir", str(tmp_path / "demo")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=230,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stderr
    for expected in ("CONTINUES", "CHANGES", "RESETS", "Flower", "loss.png", "What to type next"):
        assert expected in said
    assert "bold  finished  step 300/300" in done.stdout
    assert "loss over tokens" in done.stdout
    losses = re.search(r"validation loss (\d\.\d+) at step 100 → (\d\.\d+) at step 300", said)
    assert losses is not None and float(losses[2]) < float(losses[1])
    listed = subprocess.run(["ps", "-axww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in listed
