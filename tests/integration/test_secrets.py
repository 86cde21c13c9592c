"""Passwords: in no log, no record, no process list and on no page."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from gptjobs.layout import Layout
from gptjobs.local import _free_port, _server_binary
from gptjobs.store import Store
from tests.conftest import Commands, Workers, eventually
from tests.e2e.test_flower import Flower
from tests.integration.test_errors import assert_error
from tests.integration.test_tls import TINY, listens

PASSWORD = "Tell-n0body/@?"
SPELLINGS = (PASSWORD, quote(PASSWORD, safe=""))
PAGES = (
    "/tasks", "/workers", "/broker", "/task/{job}", "/worker/{worker}", "/api/workers?refresh=1", "/api/tasks",
    "/api/task/info/{job}", "/api/queues/length", "/metrics", "/healthcheck", "/runs", "/runs/data", "/runs/{job}",
    "/runs/{job}/data", "/runs/{job}/record", "/runs/sweeps/data", "/runs/compare/data?jobs={job}",
)  # fmt: skip


def has_secret(text: str) -> bool:
    return any(each in text for each in SPELLINGS)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server with that password."""
    port = _free_port()
    (tmp_path / "server.conf").write_text(f'port {port}\nbind 127.0.0.1\nsave ""\nrequirepass "{PASSWORD}"\n')
    command = [str(_server_binary()), str(tmp_path / "server.conf")]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    eventually(lambda: listens(port), 20)
    yield f"redis://:{SPELLINGS[1]}@127.0.0.1:{port}/0"
    process.kill()
    process.wait()


def processes() -> str:
    return subprocess.run(["ps", "-axww", "-o", "args="], capture_output=True, text=True, check=True).stdout


def test_the_password_of_redis_is_shown_nowhere(layout: Layout, tmp_path: Path, url: str) -> None:
    gptjobs = Commands(layout, url)
    workers, flower = Workers(gptjobs, tmp_path), Flower(gptjobs, tmp_path / "flower.log")
    said = []
    try:
        workers.start()
        job = gptjobs.ok("submit", "train", "-q", *TINY, "--steps", "1000000")
        eventually(lambda: Store(url).get(job).progress.get("step"))
        worker = Store(url).get(job).worker
        eventually(lambda: flower.ask(f"/worker/{worker}", login=True)[0] == 200)
        pages = [each.format(job=job, worker=worker) for each in PAGES]
        answers = [flower.ask(each, login=True) for each in pages]
        assert [status for status, _ in answers] == [200] * len(answers)
        said += [body for _, body in answers] + [processes()]
        assert job in processes()
        for words in (
            "list --json",
            "worker list",
            "worker list --json",
            "show @ --json",
            "explain @",
            "doctor",
            "logs @",
        ):
            done = gptjobs(*words.split())
            said += [done.stdout, done.stderr]
        gptjobs.ok("cancel", job)
        gptjobs("wait", job, "--timeout", "60")
    finally:
        flower.stop()
        workers.stop()
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "server.conf":
            said.append(path.read_text(errors="replace"))
    assert len(said) > 30
    assert not any(map(has_secret, said))


@pytest.mark.parametrize("place", ["@127.0.0.1:1/0", "@127.0.0.1:port/0", "@127.0.0.1:{port}/0"])
@pytest.mark.parametrize("command", ["list", "doctor", "worker start --device cpu", "up"])
def test_no_error_shows_the_password(layout: Layout, url: str, place: str, command: str) -> None:
    at = place.format(port=urlsplit(url).port)
    done = Commands(layout, f"redis://:{SPELLINGS[1]}-wrong{at}")(*command.split())
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert not has_secret(done.stdout + done.stderr)


def test_a_url_may_lie_in_a_file_that_only_its_owner_reads(layout: Layout, gptjobs: Commands, redis_url: str) -> None:
    home = layout.root / ".gptjobs"
    home.mkdir(mode=0o700)
    (home / "redis-url").touch(mode=0o600)
    (home / "redis-url").write_text(redis_url)
    gptjobs.ok("list", GPTJOBS_REDIS_URL="")


def test_the_environment_may_name_a_file_with_the_url(
    layout: Layout, gptjobs: Commands, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "url").write_text(f"{redis_url}\n")
    named = {"GPTJOBS_REDIS_URL": "", "GPTJOBS_REDIS_URL_FILE": str(tmp_path / "url")}
    gptjobs.ok("list", **named)
    assert gptjobs("list", **{**named, "GPTJOBS_REDIS_URL": "redis://127.0.0.1:1/0"}).returncode == 5
    (tmp_path / "url").unlink()
    assert_error(gptjobs("list", **named), 5, "GPTJOBS_REDIS_URL_FILE names a file that cannot be read")
