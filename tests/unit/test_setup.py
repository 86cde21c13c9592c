"""What docker-compose.yml is set up with: passwords made once, hashes for Redis, a folder for each that reads one."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gptjobs import storage
from gptjobs.layout import Layout

REPOSITORY = Path(__file__).parents[2]
USERS = ("client", "worker", "flower")
USER = os.geteuid() or 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A clone's, of a user who is not root."""
    made = tmp_path / "clone"
    shutil.copytree(REPOSITORY / "deploy", made / "deploy")
    if os.geteuid() == 0:
        os.chown(made, USER, USER)
    return made


def set_up(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "deploy/setup.py", *options, "."],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_passwords_are_made_once_and_redis_has_their_hashes(folder: Path) -> None:
    assert set_up(folder).returncode == 0
    secrets = folder / "secrets"
    rules = (secrets / "redis" / "users.acl").read_text()
    passwords = [urlsplit((secrets / user / "redis-url").read_text()).password or "" for user in USERS]
    assert min(map(len, set(passwords))) >= 32 and len(set(passwords)) == 3
    for user, password in zip(USERS, passwords, strict=True):
        assert f"user {user} on #{hashlib.sha256(password.encode()).hexdigest()} " in rules
        assert password not in rules
    first = contents(folder)
    assert set_up(folder).returncode == 0
    assert contents(folder) == first


def test_only_the_owner_reads_what_is_secret(folder: Path) -> None:
    set_up(folder)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder / "secrets").rglob("*") if path.is_file()}
    assert modes.pop("users.acl") == 0o644  # Redis is another user
    assert set(modes) == {"redis-url", "login", "password"}
    assert set(modes.values()) == {0o600}


def test_redis_7_0_knows_the_rules_as_well(folder: Path) -> None:
    set_up(folder)
    assert "setinfo" not in (folder / "secrets" / "redis" / "users.acl").read_text()


def test_this_hosts_own_url_is_the_workers_at_the_published_port(folder: Path) -> None:
    for port in (6379, 7000):
        set_up(folder, "--redis-port", str(port))
        here = urlsplit((folder / "secrets" / "redis-url").read_text())
        inside = urlsplit((folder / "secrets" / "worker" / "redis-url").read_text())
        assert (here.username, here.password) == ("worker", inside.password)
        assert (here.hostname, here.port, inside.hostname, inside.port) == ("127.0.0.1", port, "redis", 6379)


def test_the_folder_becomes_a_storage_root_that_containers_know(folder: Path) -> None:
    set_up(folder)
    assert Layout(folder).is_there
    assert storage.identity(Layout(folder)) is not None
    assert (folder / "outputs" / ".gptjobs-root").read_bytes() == (folder / ".gptjobs-root").read_bytes()


def test_compose_is_told_the_owner_once_and_all_belongs_to_them(folder: Path) -> None:
    (folder / ".env").write_text("GPTJOBS_GID=77\n")
    os.chown(folder / ".env", USER, -1)
    for _ in range(2):
        assert set_up(folder, "--env").returncode == 0
        assert (folder / ".env").read_text() == f"GPTJOBS_GID=77\nGPTJOBS_UID={USER}\n"
    made = [path for path in folder.rglob("*") if "deploy" not in path.parts]
    assert {path.stat().st_uid for path in made} == {USER}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has folders of root's")
def test_no_container_is_to_run_as_root(folder: Path) -> None:
    os.chown(folder, 0, 0)
    refused = set_up(folder, "--env")
    assert refused.returncode == 1
    assert "sudo chown -R 1000:1000" in refused.stderr
    assert not (folder / ".env").exists()
