"""The scene of a fault: a storage root, a server, workers with scripted trainers, and what a test does to them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptjobs import broker, checkpoint, record
from gptjobs.checkpoint import Checkpoint
from gptjobs.data import tokens
from gptjobs.job import ANY, Job
from gptjobs.layout import Layout
from gptjobs.presence import Presence
from gptjobs.store import Store
from tests.conftest import Commands, eventually, start_server
from tests.faults import trainer
from tests.faults.proxy import Proxy

REPOSITORY = Path(__file__).parents[2]
TTL_S = 10.0
"""that a beat may stand still"""
TAKEN_OVER_S = 20.0
"""in which a job trains again after the loss of its host"""
TRAINS_ON = ["train"]


class Server:
    """A server with an append-only file; started again, it has the same port and what it had written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process, self.url = start_server(folder, "--appendonly", "yes")
        self._port = int(self.url.rpartition(":")[2].partition("/")[0])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        self._process, _ = start_server(self._folder, "--appendonly", "yes", port=self._port)

    def is_away(self, seconds: float) -> None:
        """Killed, and started again after so long."""
        self.kill()
        time.sleep(seconds)
        self.start()


class Worker:
    """A worker's process. `proxy` is its own way to the server, where it has one."""

    def __init__(self, process: "subprocess.Popen[bytes]", name: str, log: Path, proxy: Proxy | None) -> None:
        self.process, self.name, self._log, self._proxy = process, name, log, proxy

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def proxy(self) -> Proxy:
        assert self._proxy is not None
        return self._proxy

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)


class Scene:
    """Everything a fault needs; all of it is gone when the test ends."""

    def __init__(self, layout: Layout, folder: Path) -> None:
        self.layout, self._folder = layout, folder
        (layout.root / "scripts").mkdir()
        (layout.root / "trace").mkdir()
        source = layout.root / "sources" / "text.md"
        tokens.prepare(layout, source, tokens.digest_of(source), "bytes")
        self.server = Server(folder)
        self.store = Store(self.server.url)
        self._app = broker.connect(self.server.url)
        self.gptjobs = Commands(layout, self.server.url)
        self.workers: list[Worker] = []
        self.proxies: list[Proxy] = []
        self.started: list[subprocess.Popen[bytes]] = []

    def proxy(self) -> Proxy:
        self.proxies.append(Proxy(self.server.url))
        return self.proxies[-1]

    def worker(
        self, name: str = "first", *, proxy: Proxy | None = None, slots: int = 1, changes: dict[str, Any] | None = None,
        track: str | None = None,
    ) -> Worker:  # fmt: skip
        """Start a worker of scripted trainers; `changes` are constants of its code to other values."""
        log = self._folder / f"{name}.log"
        url = proxy.url if proxy else self.server.url
        with log.open("ab") as output:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "tests.faults.worker", json.dumps(changes or {}),
                    "--device", "cpu", "--name", name, "--slots", str(slots), *(["--track", track] if track else []),
                ],
                env={**self.gptjobs.environment, "PYTHONPATH": str(REPOSITORY), "GPTJOBS_REDIS_URL": url},
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self.workers.append(Worker(process, name, log, proxy))
        eventually(lambda: any(each.name.startswith(f"{name}@") for each in self.store.workers()), 30)
        return self.workers[-1]

    def script(self, *attempts: list[str], name: str = "job") -> None:
        """What the trainers of the job of that name are to do, a list an attempt; the last also in all after it."""
        (self.layout.root / "scripts" / f"{name}.json").write_text(json.dumps(attempts))

    def submit(self, *attempts: list[str], name: str = "job", steps: int = 100000, interval: int = 10) -> str:
        """Submit a job of so many steps whose trainers follow these scripts; returns its id."""
        self.script(*attempts, name=name)
        return self.gptjobs.ok(*self.submission(name, steps, interval))

    def submission(self, name: str = "job", steps: int = 100000, interval: int = 10) -> tuple[str, ...]:
        return (
            "submit", "train", "-q", "--data", "sources/text.md", "--name", name,
            "--encoding", "bytes", "--n-layer", "1", "--n-head", "2", "--n-embd", "4",
            "--steps", str(steps), "--checkpoint-interval", str(interval),
        )  # fmt: skip

    def job(self, job: str) -> Job:
        return self.store.get(job)

    def state(self, job: str) -> str:
        return self.store.get(job).state.value

    def ends(self, job: str, limit_s: float = 60) -> str:
        """The terminal state of a job, once it has one."""
        eventually(lambda: self.store.get(job).state.is_terminal, limit_s)
        return self.state(job)

    def steps(self, job: str) -> list[tuple[int, int]]:
        """Every step that was trained, in the order of time: (token of the attempt, step)."""
        path = self.layout.root / "trace" / f"{job}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(each["token"], each["step"]) for each in map(json.loads, lines)]

    def trains(self, job: str, *, token: int = 1, step: int = 1, limit_s: float = 30) -> int:
        """Wait until an attempt of that token or a later one has made that step; returns its token."""

        def found() -> int:
            return max((made for made, at in self.steps(job) if made >= token and at >= step), default=0)

        return eventually(found, limit_s)

    def saved(self, job: str) -> list[int]:
        """The steps of the checkpoints that count."""
        return [each.manifest.step for each in checkpoint.counting(self.layout, job)]

    def saves(self, job: str, *, step: int = 1, limit_s: float = 30) -> int:
        """Wait until a checkpoint of that step or a later one counts; returns the newest one's step."""
        eventually(lambda: max(self.saved(job), default=0) >= step, limit_s)
        return self.saved(job)[-1]

    def was_trained_once(self, job: str) -> bool:
        """Whether no two attempts trained the job at once: each began after the one before it made its last step."""
        tokens = [token for token, _ in self.steps(job)]
        return tokens == sorted(tokens)

    def written(self, job: str, *, token: int) -> int:
        """How many checkpoints an attempt wrote, whether they count or not."""
        return sum(each.manifest.token == token for each in checkpoint.of_job(self.layout, job))

    def starts(self, job: str) -> list[int]:
        """The step from which each attempt started."""
        return [each.start_step for each in checkpoint.attempts(self.layout, job)]

    def weights_are_undisturbed(self, job: str) -> bool:
        """Whether the newest checkpoint that counts holds what a trainer that nothing happened to would write."""
        newest = checkpoint.counting(self.layout, job)[-1]
        return self.weights(newest) == trainer.weights_after(newest.manifest.step)

    def weights(self, saved: Checkpoint) -> str:
        return self.layout.path(saved.name).read_text()

    def torn(self, job: str) -> list[Path]:
        """What lies in the job's folder and is no committed checkpoint."""
        files = set(self.layout.job_checkpoints(job).iterdir())
        return sorted(each for each in files if not {each.with_suffix(".pt"), each.with_suffix(".json")} <= files)

    def presence(self, name: str) -> Presence:
        """What Redis knows of the worker of that name."""
        return next(each for each in self.store.workers() if each.name.startswith(f"{name}@"))

    def jump(self, worker: str, seconds: int) -> None:
        """Let the wall clock of a worker be ahead by so much from now on."""
        (self.layout.root / f"clock-{worker}").write_text(str(seconds))

    def expire_all_keys(self) -> None:
        """What a server's clock that jumps ahead does: every key that ever expires is gone at once."""
        redis = self.store._redis
        for key in redis.scan_iter():
            if redis.ttl(key) > 0:
                redis.delete(key)

    def outcome(self, job: str) -> str | None:
        """The state that the storage root has as the job's end."""
        found = record.read_outcome(self.layout, job)
        return found.state.value if found else None

    def trainers(self, job: str = "") -> list[int]:
        """The processes that train the job, or any, found by their command line."""
        listed = subprocess.run(["ps", "-axww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
        mine = [
            line for line in listed.splitlines() if "tests.faults.trainer" in line and str(self.layout.root) in line
        ]
        return [int(line.split()[0]) for line in mine if f"/{job}/" in line or not job]

    def trainer(self, job: str) -> int:
        (found,) = self.trainers(job)
        return found

    def open(self, gate: str) -> None:
        """Let the trainers go on that wait for it."""
        (self.layout.root / gate).touch()

    def lose(self, worker: Worker, job: str, *, spare: int | None = None) -> None:
        """Kill a worker and the job's trainers at one blow, as the loss of a host does; not the one to spare."""
        victims = [each for each in self.trainers(job) if each != spare]
        worker.kill()
        for each in victims:
            os.kill(each, signal.SIGKILL)

    def ring(self, job: str, serial: int) -> None:
        """Ring for a job, whatever its record says."""
        self._app.send_task(broker.TASK, args=[job, serial], task_id=job, queue=ANY)

    def lose_doorbells(self) -> None:
        """Delete every message that waits."""
        redis = self.store._redis
        for key in redis.scan_iter(_type="list"):
            redis.delete(key)

    def start(self, *command: str, **options: Any) -> "subprocess.Popen[bytes]":
        """Start a command of gptjobs, which ends with the test."""
        self.started.append(self.gptjobs.start(*command, **options))
        return self.started[-1]

    def clear(self) -> None:
        for each in self.workers:
            each.thaw()
            each.kill()
        for process in self.started:
            process.kill()
            process.wait()
        for pid in self.trainers():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for proxy in self.proxies:
            proxy.close()
        self.server.kill()


def seconds_until(look: Callable[[], object], limit_s: float) -> float:
    """How long it takes until `look` is true; fails after `limit_s`."""
    began = time.monotonic()
    eventually(look, limit_s)
    return time.monotonic() - began
