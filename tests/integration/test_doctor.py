"""`gptjobs doctor` on servers, users, ports and disks that really are as they should not be."""

import http.server
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from gptjobs import doctor
from gptjobs.doctor import host, ports, reach, rights
from gptjobs.doctor.check import Check, Verdict
from gptjobs.errors import GptjobsError
from gptjobs.layout import Layout
from gptjobs.local import _free_port
from gptjobs.settings import LOOPBACK, Settings
from gptjobs.store import Store
from tests.conftest import Commands, Workers, answering_server, eventually, start_server
from tests.e2e.test_flower import Flower
from tests.integration.test_acl import Server, server  # noqa: F401, a fixture
from tests.integration.test_tls import Tls, open_proxy  # noqa: F401, a fixture

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8, and mounts for one")
OTHER_LOOPBACK = "127.0.0.2"
"""which stands for an address that other hosts reach"""


def examined(gptjobs: Commands, **variables: str) -> dict[str, dict[str, Any]]:
    done = gptjobs("doctor", "--json", **variables)
    assert done.stderr == ""
    checks = json.loads(done.stdout)["checks"]
    bad = [each for each in checks if each["verdict"] in ("warning", "problem")]
    assert all(each["hint"] for each in bad), bad
    assert done.returncode == any(each["verdict"] == "problem" for each in bad)
    return {each["name"]: each for each in checks}


def test_a_server_with_every_setting_wrong_is_told_setting_by_setting(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    options = ("--appendonly", "yes", "--appendfsync", "no", "--maxmemory-policy", "allkeys-lru", "--maxclients", "40")
    process, url = start_server(tmp_path / "data", *options)
    admin = redis.Redis.from_url(url, decode_responses=True)
    held = [redis.Redis.from_url(url) for _ in range(37)]
    try:
        assert all(each.ping() for each in held)
        (tmp_path / "data" / "dump.rdb").mkdir()  # no snapshot can be put in its place
        admin.bgsave()
        eventually(lambda: admin.info()["rdb_last_bgsave_status"] == "err")
        admin.config_set("maxmemory", 100_000)
        found = examined(Commands(layout, url))
    finally:
        for each in (admin, *held):
            each.close()
        process.kill()
        process.wait()
    expected = {"eviction": "problem", "appendfsync": "warning", "persistence": "problem", "clients": "warning"}
    assert {name: found[name]["verdict"] for name in expected} == expected
    assert (found["memory"]["verdict"], "rights" in found) == ("problem", False)
    assert found["eviction"]["hint"].startswith(f"redis-cli -p {url.split(':')[3][:-2]} config set maxmemory-policy")


@LINUX
def test_an_append_only_file_that_cannot_be_written_is_a_problem(layout: Layout, tmp_path: Path) -> None:
    disk = mounted(tmp_path / "disk", "-t tmpfs -o size=128k tmpfs")
    with disk as folder:
        process, url = start_server(folder, "--appendonly", "yes", "--appendfsync", "no")
        try:
            store = Store(url)
            with pytest.raises(redis.RedisError):
                for number in range(1000):
                    store._redis.set(f"key{number}", "x" * 4096)
            found = examined(Commands(layout, url))
        finally:
            process.kill()
            process.wait()
    assert found["persistence"]["verdict"] == "problem" and "append-only file" in found["persistence"]["says"]


@contextmanager
def mounted(point: Path, what: str) -> Iterator[Path]:
    point.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *what.split(), str(point)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


@LINUX
def test_a_disk_that_is_read_only_full_or_out_of_inodes_is_told(redis_url: str, tmp_path: Path) -> None:
    for options, name, verdict, words in (
        ("size=1m", "mount", "warning", "in memory"),
        ("nr_inodes=40", "inodes", "warning", "more files can be made"),
        ("size=1m", "root", "problem", "No space left on device"),
        ("size=1m", "root", "problem", "Read-only file system"),
    ):
        with mounted(tmp_path / "disk", f"-t tmpfs -o {options} tmpfs") as point:
            layout = Layout(point)
            layout.make()
            if "space" in words:
                fill(layout.outputs / "full")
            if "Read-only" in words:
                subprocess.run(["mount", "-o", "remount,ro", str(point)], check=True)
            found = examined(Commands(layout, redis_url), PYTHONDONTWRITEBYTECODE="1")
        assert (found[name]["verdict"], words in found[name]["says"]) == (verdict, True), found[name]


def fill(path: Path) -> None:
    with pytest.raises(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_a_client_without_root_and_torch_sees_no_problem_and_is_told_what_was_skipped(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "is_installed", lambda name: name not in ("torch", "flower"))
    monkeypatch.setattr(ports, "own_addresses", list)
    made = list(doctor.examine(Settings(root=tmp_path, redis_url=redis_url, redis_url_given=True)))
    assert {each.name for each in made if each.verdict is Verdict.SKIPPED} == {"flower", "devices", "root"}
    assert {each.name: each.verdict for each in made if each.hint} == {
        "appendonly": Verdict.WARNING,
        "workers": Verdict.WARNING,
    }


def test_a_worker_that_works_is_found_well_by_its_own_user_and_nothing_it_may_not_is_tried(
    server: Server,  # noqa: F811
    layout: Layout,
    tmp_path: Path,
) -> None:
    gptjobs = server.commands("worker", layout)
    workers = Workers(gptjobs, tmp_path)
    try:
        workers.start()
        found = examined(gptjobs)
    finally:
        workers.stop()
    assert {found[name]["verdict"] for name in ("devices", "root", "redis", "workers")} == {"ok"}
    assert {name for name, each in found.items() if each["hint"]} <= {
        "appendonly",
        "encoding",
        "room",
        "ports",
        "mount",
    }
    assert server.denied() == []


def test_a_user_that_may_not_do_the_work_is_told_before_a_job_is(server: Server, layout: Layout) -> None:  # noqa: F811
    def made(user: str, *, trains: bool) -> list[tuple[Verdict, bool]]:
        url = server.url(user)
        checks = list(rights.checks(Store(url), url, trains=trains))
        return [(each.verdict, "no permissions" in each.says.lower()) for each in checks]

    assert made("worker", trains=True) == made("client", trains=False) == []
    assert made("client", trains=True) == [(Verdict.WARNING, True)]
    assert made("flower", trains=False) == [(Verdict.PROBLEM, True)]
    with server.connect("admin") as admin:
        assert admin.keys() == []  # nothing was carried out
        admin.execute_command("ACL", "SETUSER", "client", "-multi", "-info")
    assert made("client", trains=False) == [(Verdict.PROBLEM, True)]
    with server.connect("admin") as admin:
        assert admin.keys() == []
    found = examined(server.commands("client", layout))
    assert found["redis"]["verdict"] == "warning" and "may not see how it is set" in found["redis"]["says"]


def told(url: str) -> tuple[str, str]:
    """Why the server does not answer, and what to type."""
    with pytest.raises(GptjobsError) as failed:
        Store(url, timeout=0.5).ping()
    says, hint = reach.why(url, failed.value)
    assert hint and "secret" not in says + hint
    return says, hint


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port where each connection is answered so, and closed."""
    with closing(socket.create_server((LOOPBACK, 0))) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_name_a_port_and_a_password_that_are_wrong_are_told_apart(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "LIMIT_S", 0.5)
    assert "has a name that is not known here" in told("redis://:secret@nowhere.invalid:6379/0")[0]
    says, hint = told(f"redis://:secret@{LOOPBACK}:{_free_port()}/0")
    assert "nothing listens at" in says and "gptjobs up" in hint
    assert "refuses the user or the password" in told(redis_url.replace("secret", "wrong-secret"))[0]
    with listening(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        says, hint = told(f"redis://:secret@{LOOPBACK}:{port}/0")
        assert "is no Redis: it says 'HTTP/1.1 400 Bad Req'" in says and "GPTJOBS_REDIS_URL=" in hint
    with listening(lambda connection: connection.sendall(b"-DENIED Redis is running in protected mode\r\n")) as port:
        says, hint = told(f"redis://{LOOPBACK}:{port}/0")
        assert "protects itself" in says and "requirepass" in hint
    with listening(lambda connection: connection.sendall(b"-LOADING Redis is loading\r\n")) as port:
        assert "loading" in told(f"redis://{LOOPBACK}:{port}/0")[0].lower()
    with closing(socket.create_server((LOOPBACK, 0))) as silent:
        says, hint = told(f"redis://:secret@{LOOPBACK}:{silent.getsockname()[1]}/0")
        assert "says nothing" in says and "redis-cli -h" in hint
        says, _ = told(f"rediss://:secret@{LOOPBACK}:{silent.getsockname()[1]}/0")
        assert "says nothing" in says


def test_tls_on_one_side_alone_is_told(redis_url: str, open_proxy: Callable[..., Tls]) -> None:  # noqa: F811
    tls = open_proxy()
    says, hint = told(tls.url.replace("rediss:", "redis:"))
    assert "speaks TLS" in says and hint.startswith("rediss:// in the place of redis://")
    says, hint = told(redis_url.replace("redis:", "rediss:"))
    assert "does not speak TLS" in says and hint.startswith("redis:// in the place of rediss://")
    says, hint = told(f"{tls.url}?ssl_ca_certs={tls.stranger}")
    assert "certificate that is not trusted" in says and "ssl_ca_certs" in hint
    asks = open_proxy(asks_client=True)
    assert "ssl_certfile" in told(asks.trusted)[1]


def test_a_password_that_strangers_need_not_say_is_a_problem(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptjobs.doctor import server as redis_checks

    process, url = start_server(tmp_path)
    monkeypatch.setattr(reach, "is_loopback", lambda host: False)  # as other hosts reach it
    try:
        assert [each.name for each in redis_checks.openness(url)] == ["tls"]
        with redis.Redis.from_url(url) as admin:
            admin.execute_command("ACL", "SETUSER", "default", "nopass")
        found = {each.name: each.verdict for each in redis_checks.openness(url)}
    finally:
        process.kill()
        process.wait()
    assert found == {"tls": Verdict.WARNING, "password": Verdict.PROBLEM}


@LINUX
def test_a_redis_that_other_hosts_reach_without_tls_is_told(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "own_addresses", lambda: [OTHER_LOOPBACK])
    monkeypatch.setattr(ports, "FLOWER_PORT", _free_port())
    found: list[list[Check]] = []
    for options in ((), ("--bind", "0.0.0.0"), ("--bind", "0.0.0.0", "--requirepass", "")):
        process, url = start_server(tmp_path, *options) if "" not in options else open_server(tmp_path, *options)
        try:
            found.append(list(ports.checks(url)))
        finally:
            process.kill()
            process.wait()
    assert [[each.verdict for each in made] for made in found] == [[Verdict.OK], [Verdict.WARNING], [Verdict.PROBLEM]]
    assert "without TLS" in found[1][0].says and "no password" in found[2][0].says


def open_server(folder: Path, *options: str) -> "tuple[subprocess.Popen[bytes], str]":
    """One without a password."""
    port = _free_port()
    return answering_server(folder, port, f"redis://{LOOPBACK}:{port}/0", "--protected-mode", "no", *options)


def test_flower_that_other_hosts_reach_is_told_with_whether_it_asks_for_a_login(
    gptjobs: Commands, tmp_path: Path
) -> None:
    flower = Flower(gptjobs, tmp_path / "flower.log")
    try:
        made = ports.flower(LOOPBACK, int(flower._port))
        other = ports.flower(OTHER_LOOPBACK, int(flower._port))
    finally:
        flower.stop()
    assert made is not None and made.verdict is Verdict.WARNING and "without TLS" in made.says
    assert other is None  # gptjobs up lets it listen on loopback


def test_flower_that_asks_for_no_login_is_a_problem_and_another_program_is_none_of_it(tmp_path: Path) -> None:
    class Web(http.server.BaseHTTPRequestHandler):
        server_version = "TornadoServer/6.5"

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    class Another(Web):
        server_version = "nginx"

    found = []
    for kind in (Web, Another):
        with http.server.HTTPServer((LOOPBACK, 0), kind) as web:
            thread = threading.Thread(target=web.handle_request)
            thread.start()
            found.append(ports.flower(LOOPBACK, web.server_address[1]))
            thread.join()
    with listening(lambda connection: connection.sendall(b"no web\r\n")) as port:
        found.append(ports.flower(LOOPBACK, port))
    assert found[0] is not None and found[0].verdict is Verdict.PROBLEM and "no login" in found[0].says
    assert found[1:] == [None, None]


def test_the_addresses_that_other_hosts_use_are_none_of_loopback() -> None:
    found = ports.own_addresses()
    assert len(set(found)) == len(found)
    for each in found:
        assert not each.startswith("127.") and each != "::1"
        family = socket.AF_INET6 if ":" in each else socket.AF_INET
        with socket.socket(family) as probe:
            probe.bind((each, 0))  # it is an address of this host


def test_the_table_says_each_hint_below_its_check(gptjobs: Commands, store: Store) -> None:
    store._redis.config_set("maxmemory-policy", "volatile-ttl")
    try:
        done = gptjobs("doctor")
    finally:
        store._redis.config_set("maxmemory-policy", "noeviction")
    lines = done.stdout.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("problem  eviction")]
    assert done.returncode == 1
    assert lines[at + 1].lstrip().startswith("hint: redis-cli -p ")
    assert "config set maxmemory-policy noeviction" in lines[at + 1]


def test_a_url_that_cannot_be_read_is_the_problem_and_the_rest_is_looked_at(gptjobs: Commands) -> None:
    found = examined(gptjobs, GPTJOBS_REDIS_URL="redis://:secret@127.0.0.1:port/0")
    assert found["redis"]["verdict"] == "problem" and "cannot be read" in found["redis"]["says"]
    assert found["root"]["verdict"] == "ok" and "ports" in found
