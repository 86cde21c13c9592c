"""What tests share: a storage root with text in it, a real server, commands and workers as real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gptjobs.errors import RedisUnreachable
from gptjobs.layout import Layout
from gptjobs.local import _free_port, _server_binary
from gptjobs.store import Store

if "PYTEST_XDIST_WORKER" in os.environ:
    # trainers of tests that run beside each other would wait, spinning, for each other's cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

Value = TypeVar("Value")

WAIT_S = 90.0
VARIABLES = ("CHECKPOINT_PATH", "BATCH_SIZE", "BLOCK_SIZE", "LEARNING_RATE", "RESUME_STEPS", "TRAINING_DATA_SOURCE")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pictures", type=Path, metavar="FOLDER", help="where tests/e2e/test_runs.py writes its pictures")


def eventually(look: Callable[[], Value], limit_s: float = WAIT_S) -> Value:
    """What `look` returns once that is true; fails after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"still {found!r} after {limit_s:g} s")
        time.sleep(0.1)


def english(words: int) -> str:
    """Text that a small model learns something from: the same on every machine."""
    stock = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "owls", "watch"]
    state, lines, line = 12345, [], []
    for _ in range(words):
        state = (state * 1103515245 + 12345) % 2**31
        line.append(stock[(state >> 16) % len(stock)])
        if len(line) == 12:
            lines.append(" ".join(line) + ".")
            line = []
    return "\n".join(lines) + "\n"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A storage root with `sources/text.md` in it, about 40 kB."""
    made = Layout(tmp_path / "root")
    made.make()
    (made.root / "sources").mkdir()
    (made.root / "sources" / "text.md").write_text(english(9000))
    return made


def start_server(folder: Path, *options: str, port: int | None = None) -> "tuple[subprocess.Popen[bytes], str]":
    """A real server that answers, and its URL; on a free port unless one is given."""
    port = port or _free_port()
    words = ("--bind", "127.0.0.1", "--requirepass", "secret", *options)
    return answering_server(folder, port, f"redis://:secret@127.0.0.1:{port}/0", *words)


def answering_server(folder: Path, port: int, url: str, *options: str) -> "tuple[subprocess.Popen[bytes], str]":
    """A real server, once it answers at this URL, and the URL."""
    command = [str(_server_binary()), "--port", str(port), "--save", "", "--dir", str(folder), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            Store(url).ping()
        except RedisUnreachable:
            return False
        return True

    eventually(answers, 20)
    return process, url


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, url = start_server(tmp_path_factory.mktemp("server"))
    yield url
    process.terminate()
    process.wait()


@pytest.fixture
def redis_url(_server: str) -> str:
    """A real server, empty."""
    Store(_server)._redis.flushall()
    return _server


@pytest.fixture
def store(redis_url: str) -> Store:
    return Store(redis_url)


class Commands:
    """Runs `gptjobs` as a user does, in a process of its own, in the storage root."""

    def __init__(self, layout: Layout, redis_url: str) -> None:
        self.layout = layout
        self.environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        # models this small only lose by a second thread
        self.environment |= {"OMP_NUM_THREADS": "1", "GPTJOBS_ROOT": str(layout.root), "GPTJOBS_REDIS_URL": redis_url}

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gptjobs", *arguments],
            env={**self.environment, **variables},
            cwd=self.layout.root,
            capture_output=True,
            text=True,
            timeout=180,
        )

    def ok(self, *arguments: str, **variables: str) -> str:
        """What the command printed; fails where it did not exit with 0."""
        done = self(*arguments, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
        options = {"env": self.environment, "cwd": self.layout.root, **options}
        return subprocess.Popen([sys.executable, "-m", "gptjobs", *arguments], **options)


@pytest.fixture
def gptjobs(layout: Layout, redis_url: str) -> Commands:
    return Commands(layout, redis_url)


class Workers:
    """Starts real workers; all are gone when the test ends."""

    def __init__(self, commands: Commands, folder: Path) -> None:
        self._commands, self._folder = commands, folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str = "worker", slots: int = 1, *options: str) -> "subprocess.Popen[bytes]":
        with (self._folder / f"{name}.log").open("ab") as log:
            process = self._commands.start(
                "worker", "start", "--device", "cpu", "--name", name, "--slots", str(slots), *options,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        store = Store(self._commands.environment["GPTJOBS_REDIS_URL"])
        eventually(lambda: any(each.name.startswith(f"{name}@") for each in store.workers()))
        return process

    def log(self, name: str = "worker") -> str:
        return (self._folder / f"{name}.log").read_text()

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@pytest.fixture
def workers(gptjobs: Commands, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(gptjobs, tmp_path)
    yield made
    made.stop()
