"""The files of docker-compose.yml, brought up unmodified in a fresh copy of the repository."""

import base64
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptjobs.local import _free_port

REPOSITORY = Path(__file__).parents[2]
GPU = ("-f", "docker-compose.yml", "-f", "compose.gpu.yml")
LAN = ("-f", "docker-compose.yml", "-f", "compose.lan.yml")
UNPRIVILEGED = 1000
"""the uid that docker-compose.yml takes where .env names none"""
BUILD_LIMIT_S = 1500


def docker(*arguments: str, check: bool = True, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout)
    assert not check or done.returncode == 0, done.stderr
    return done


def fresh_copy(folder: Path) -> Path:
    """What a clone would have, with what is not committed yet, as its user's."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (REPOSITORY / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    if os.geteuid() == 0:
        give(folder, UNPRIVILEGED)
    elif os.geteuid() != UNPRIVILEGED:
        make_secrets(folder)
    return folder


def give(folder: Path, user: int) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user)


def make_secrets(folder: Path) -> "subprocess.CompletedProcess[str]":
    """What `make secrets` does."""
    command = [sys.executable, "-B", "deploy/setup.py", "--env", "."]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@dataclass(frozen=True)
class Stack:
    """A compose project of its own, on ports of its own."""

    folder: Path
    redis_port: int = field(default_factory=_free_port)
    flower_port: int = field(default_factory=_free_port)

    @property
    def name(self) -> str:
        return f"gptjobs-test-{os.getpid()}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "COMPOSE_PROJECT_NAME": self.name,
            "GPTJOBS_REDIS_PORT": str(self.redis_port),
            "GPTJOBS_FLOWER_PORT": str(self.flower_port),
        }

    def __call__(
        self, *arguments: str, check: bool = True, timeout: float = 400, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        """`docker compose …` in the folder."""
        done = subprocess.run(
            ["docker", "compose", *arguments],
            cwd=self.folder,
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def client(self, *arguments: str, **variables: str) -> str:
        """What `gptjobs …` prints in the client's service, as the README has it run."""
        return self("run", "--rm", "-T", "--no-deps", "client", *arguments, **variables).stdout.strip()

    def job(self, reference: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.client("show", reference, "--json"))
        return found

    def containers(self, service: str | None = None) -> list[dict[str, Any]]:
        """As the engine describes them, also those that ended."""
        ids = self("--profile", "*", "ps", "-aq", *([service] if service else [])).stdout.split()
        return json.loads(docker("inspect", *ids).stdout) if ids else []

    def container(self, service: str) -> dict[str, Any]:
        (found,) = self.containers(service)
        return found

    def secret(self, name: str) -> str:
        return (self.folder / "secrets" / name).read_text().strip()

    def flower(self, path: str, login: str | None = None) -> tuple[int, str]:
        """Status and body of Flower's answer."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.flower_port}{path}")
        if login:
            request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def down(self) -> None:
        self("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "10")


def signal_from_outside(name: str, pid: int) -> None:
    """`docker kill` would tell the engine to leave it ended, and nothing inside may end a container's first process.
    In a container of its own, as the engine may be another's or in a virtual machine."""
    docker("run", "--rm", "--pid", "host", "--user", "0", "--network", "none", "--entrypoint", "kill",
           "redis:7-alpine", f"-{name}", str(pid))  # fmt: skip
