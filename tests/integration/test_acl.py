"""Who may do what in Redis: a real server with deploy/redis-users.acl, and its three users."""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from gptjobs import broker
from gptjobs.layout import Layout
from gptjobs.local import _free_port, _server_binary
from tests.conftest import Commands, Workers, eventually
from tests.e2e.test_flower import Flower
from tests.e2e.test_runs import press
from tests.integration.test_errors import assert_error
from tests.integration.test_tls import TINY
from tests.receiver import receiving

FILE = Path(__file__).parents[2] / "deploy" / "redis-users.acl"
PLACEHOLDER = "#" + 64 * "0"
USERS = ("client", "worker", "flower")
ADMIN = "admin"
REFUSAL = r"permission|not allowed|ACL"


@dataclass(frozen=True)
class Server:
    port: int

    def url(self, user: str) -> str:
        return f"redis://{user}:{password(user)}@127.0.0.1:{self.port}/0"

    def commands(self, user: str, layout: Layout) -> Commands:
        return Commands(layout, self.url(user))

    def connect(self, user: str) -> "redis.Redis":
        return redis.Redis.from_url(self.url(user), decode_responses=True)

    def denied(self) -> list[str]:
        """What users were refused, as the server has logged it."""
        with self.connect(ADMIN) as admin:
            return [f"{each['username']}: {each['reason']} {each['object']}" for each in admin.acl_log()]


def password(user: str) -> str:
    return f"password-of-{user}"


def filled_in(text: str) -> str:
    """The file with passwords, as docs/security.md says to fill it in; and one who may all, for the test."""
    lines = [f"user {ADMIN} on >{password(ADMIN)} ~* &* +@all"]
    for line in text.splitlines():
        user = line.split()[1]
        lines.append(line.replace(PLACEHOLDER, "#" + hashlib.sha256(password(user).encode()).hexdigest()))
    return "\n".join(lines) + "\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "users.acl").write_text(filled_in(FILE.read_text()))
    made = Server(_free_port())
    command = [str(_server_binary()), "--port", str(made.port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--dir", str(tmp_path), "--aclfile", str(tmp_path / "users.acl")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    eventually(lambda: answers(made), 20)
    yield made
    process.kill()
    process.wait()


def answers(server: Server) -> bool:
    try:
        with server.connect(ADMIN) as admin:
            return bool(admin.ping())
    except redis.RedisError:
        return False


def test_each_user_can_do_its_work(server: Server, layout: Layout, tmp_path: Path) -> None:
    gptjobs = server.commands("client", layout)
    workers = Workers(server.commands("worker", layout), tmp_path)
    flower = Flower(server.commands("flower", layout), tmp_path / "flower.log")
    try:
        worker = workers.start()
        with receiving() as receiver:
            first = gptjobs.ok("submit", "train", "-q", *TINY, "--notify", receiver.url)
            gptjobs.ok("wait", first, "--timeout", "90")
            eventually(lambda: receiver.messages)
        gptjobs.ok("retry", "--from-scratch", first)
        long = gptjobs.ok("submit", "train", "-q", *TINY, "--steps", "100000")
        eventually(lambda: (layout.attempts(long) / "1.jsonl").exists())
        waits = gptjobs.ok("submit", "train", "-q", *TINY, "--priority", "9", "--device", "cuda")
        for command in (
            "list", "show @", "explain @", "worker list", "doctor", f"pause {waits}", f"unpause {waits}",
            f"priority {waits} 2", "repair", f"cancel {long}",
        ):  # fmt: skip
            gptjobs.ok(*command.split())
        server.commands("worker", layout).ok("doctor")  # as one checks the host of a worker
        assert gptjobs("wait", long, "--timeout", "90").returncode == 10

        eventually(lambda: json.loads(flower.ask(f"/api/task/info/{first}", login=True)[1])["step"] == 20)
        assert flower.ask("/broker", login=True)[0] == 200
        eventually(lambda: broker.TASK in flower.ask("/api/workers?refresh=1", login=True)[1])
        assert flower.ask("/runs/data", login=True)[0] == 200
        assert 'gptjobs_slots{device="cpu"} 1.0' in flower.ask("/metrics")[1]
        assert [press(flower, waits, each)[1] for each in ("pause", "unpause")] == ["paused", "queued"]
        assert flower.ask(f"/api/task/revoke/{waits}", post=True, login=True)[0] == 200
        gptjobs.ok("retry", "--from-scratch", waits)
        gptjobs.ok("worker", "drain", "worker")
        assert worker.wait(60) == 0
    finally:
        flower.stop()
        workers.stop()
    # the doctor's question whether a worker could work with the client's user
    assert server.denied() == ["client: key gptjobs:worker:doctor"]


FOR_NOBODY = (
    "CONFIG GET *", "FLUSHALL", "FLUSHDB", "KEYS *", "DEBUG SLEEP 0", "SHUTDOWN NOSAVE", "MODULE LIST", "ACL LIST",
    "ACL SETUSER client allcommands", "CLIENT LIST", "CLIENT KILL ID 1", "MONITOR", "SAVE", "REPLICAOF 127.0.0.1 1",
    "EVAL return 0", "SCRIPT FLUSH", "FUNCTION LIST", "SELECT 1", "SET other x", "GET other", "HGETALL other",
    "RENAME gptjobs:jobs other", "COPY gptjobs:jobs other", "MIGRATE 127.0.0.1 1 gptjobs:jobs 0 1", "LPUSH anything x",
    "PUBLISH other x", "PUBLISH /1.celery.pidbox x", "SUBSCRIBE other", "PSUBSCRIBE *", "PSUBSCRIBE /0.*",
)  # fmt: skip
FOR_ONE_NOT = {
    "client": (
        "PUBLISH /0.celery.pidbox x", "PUBLISH /0.celeryev/task.progress x", "PSUBSCRIBE /0.celeryev/*", "BRPOP any 1",
        "SET gptjobs:worker:x x", "SET gptjobs:root x", "DEL gptjobs:jobs", "HSET unacked x x", "HGET gptjobs:notify x",
        "HGETALL gptjobs:notify",
    ),
    "worker": ("SET celeryev.x x", "CONFIG GET appendfsync"),
    "flower": (
        "LPUSH any x", "BRPOP any 1", "SET gptjobs:worker:x x", "SET gptjobs:asked:x x", "SET gptjobs:root x",
        "SCAN 0", "HSET unacked x x", "INFO", "HGET gptjobs:notify x", "HSET gptjobs:notify x x",
    ),
}  # fmt: skip


def test_no_user_may_do_more(server: Server) -> None:
    for user in USERS:
        for command in (*FOR_NOBODY, *FOR_ONE_NOT[user]):
            with server.connect(user) as door, pytest.raises(redis.ResponseError, match=REFUSAL):
                door.execute_command(*command.split())


def test_a_script_may_do_no_more_than_its_user(server: Server) -> None:
    for user in USERS:
        for call in ("'SET', 'other', 'x'", "'CONFIG', 'GET', '*'", "'HGETALL', 'other'", "'FLUSHALL'"):
            with (
                server.connect(user) as door,
                pytest.raises(redis.ResponseError, match=REFUSAL),
            ):
                door.register_script(f"return redis.call({call})")()


def test_nobody_comes_in_without_a_password_of_its_own(server: Server, layout: Layout) -> None:
    for who in ("", ":wrong@", f":{password('client')}@", "client:wrong@", "default:@"):
        done = Commands(layout, f"redis://{who}127.0.0.1:{server.port}/0")("list")
        assert_error(done, 5, "refuses the user or the password", hint="USER:PASSWORD")


def test_the_file_as_it_comes_lets_nobody_in() -> None:
    """A placeholder is the hash of no password that anyone knows."""
    lines = FILE.read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["default", *USERS]
    # nobody can be it; but Redis 7 replays its append-only file as it, and drops the transactions it may not do
    assert lines[0].split()[2:] == ["off", "resetpass", "allkeys", "allchannels", "+@all"]
    assert all(line.split()[2:4] == ["on", PLACEHOLDER] for line in lines[1:])
    assert not [
        word for line in lines[1:] for word in line.split() if word.startswith((">", "+@", "allkeys", "nopass"))
    ]
