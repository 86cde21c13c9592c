"""What anyone who reaches Redis can write there, written: nothing runs, nothing leaves the root, nobody falls over."""

import json
import os
import pickle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection, Producer, Queue

from gptjobs import broker
from gptjobs.cli import screen
from gptjobs.cli.watch import in_one_line
from gptjobs.flower import pages
from gptjobs.flower.task import JobTask
from gptjobs.job import Job, JobSpec, JobState, plain
from gptjobs.layout import Layout
from gptjobs.store import JOB, JOBS, LEASED, WAITING, WORKER, Store
from tests.conftest import Commands, Workers, eventually
from tests.integration.test_tls import TINY

ESCAPE = "\x1b]0;owned\x07\x1b[31m\r\u202e"
LONG = "x" * 10_000
OVERRIDES = {
    "model": "nano", "n_layer": 1, "n_head": 2, "n_embd": 32, "batch_size": 4, "block_size": 32, "steps": 5,
    "data": "sources/text.md",
}  # fmt: skip


def override(name: Any, value: Any, origin: Any = "--x") -> dict[str, Any]:
    """A spec's fields with one override more."""
    kept = {each: {"value": old, "origin": "--x"} for each, old in OVERRIDES.items()}
    return {"overrides": {**kept, name: {"value": value, "origin": origin}}}


SPECS: dict[str, dict[str, Any]] = {
    "id": {"id": "../../outside"},
    "kind": {"kind": ESCAPE},
    "kindtype": {"kind": ["train"]},
    "name": {"name": f"../{ESCAPE}"},
    "longname": {"name": LONG},
    "parentup": {"kind": "resume", "parent": "../../../etc/passwd"},
    "parentabsolute": {"kind": "resume", "parent": "/etc/passwd"},
    "parentlink": {"kind": "resume", "parent": "checkpoints/link/secret.pt"},
    "parentnul": {"kind": "resume", "parent": "a\0b.pt"},
    "parentcode": {"kind": "resume", "parent": "checkpoints/code.pt"},
    "parentlong": {"kind": "resume", "parent": f"checkpoints/{LONG[:3000]}.pt"},
    "parenttype": {"kind": "resume", "parent": {"a": 1}},
    "digest": {"data_digest": "/../../../.."},
    "digesttype": {"data_digest": 5},
    "accept": {"accept_data_change": "yes"},
    "device": {"device": ["any"]},
    "priority": {"priority": "9"},
    "prioritylarge": {"priority": 10**30},
    "prioritybool": {"priority": True},
    "time": {"submitted_at": float("nan")},
    "timelarge": {"submitted_at": 1e300},
    "timetext": {"submitted_at": "now"},
    "dataup": override("data", "../../../etc/passwd"),
    "dataabsolute": override("data", "/etc/passwd"),
    "datalink": override("data", "sources/link/secret.md"),
    "datanul": override("data", "sources/\0"),
    "dataescape": override("data", f"sources/{ESCAPE}"),
    "datalong": override("data", f"sources/{LONG[:300]}"),
    "datafolder": override("data", "sources"),
    "unknown": override(ESCAPE, 1),
    "unknownbool": override("no_such", True),
    "bool": override("steps", True),
    "text": override("batch_size", "many"),
    "list": override("learning_rate", [1]),
    "nan": override("learning_rate", float("nan")),
    "giant": override("n_layer", 10**400),
    "steps": override("steps", 10**12),
    "origin": override("steps", 5, 7),
    "overrides": {"overrides": [1, 2]},
    "schema": {"schema": "1"},
    "later": {"a field of later": float("nan")},
}
"""fields of a spec by the id of the job that has them"""

NO_DATA = override("data", "sources/none.md")
RECORDS: dict[str, dict[str, Any]] = {
    "reason": {"reason": ESCAPE + LONG, "worker": ESCAPE, "device": ESCAPE},
    "bytes": {"reason": b"\xff\xfe\x00"},
    "state": {"state": "owned"},
    "livepriority": {"priority": "99"},
    "token": {"token": "9" * 5000},
    "beat": {"beat": "-1"},
    "attempt": {"attempt": "1e9"},
    "progress": {"progress": json.dumps({"step": 1, "end_step": 0, "tokens": 1, "eta_s": 1e308, "stage": ESCAPE})},
    "progressnan": {"progress": '{"step": 1, "end_step": 2, "tokens": 3, "done": NaN, "eta_s": Infinity}'},
    "progresstypes": {"progress": '{"step": "1", "end_step": [2], "tokens": true, "train_loss": "x"}'},
    "deep": {"progress": "[" * 100_000},
    "deepspec": {"spec": '{"a":' * 100_000},
    "nospec": {"spec": "5"},
}


def record_of(id: str, spec: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    whole = {**JobSpec(id=id, kind="train", submitted_at=time.time()).to_dict(), **override("seed", 1), **spec}
    return {
        "spec": json.dumps(whole), "state": "queued", "serial": 1, "token": 0, "nonce": "", "beat": 0, "attempt": 0,
        "fruitless": "{}", **fields,
    }  # fmt: skip


def write(door: "redis.Redis", id: str, record: Mapping[str, Any], *, among: str = WAITING) -> None:
    door.hset(JOB + id, mapping=dict(record))
    door.zadd(JOBS, {id: 1})
    door.sadd(among, id)


def beside(root: Path) -> set[Path]:
    """What lies around the root, not in it."""
    return {each for each in root.parent.rglob("*") if not each.is_relative_to(root)}


@pytest.fixture
def door(redis_url: str) -> "redis.Redis":
    return redis.Redis.from_url(redis_url)


@pytest.fixture
def secret(layout: Layout) -> Path:
    """A folder outside the root, to which links in the root lead; and a checkpoint that is code."""
    outside = layout.root.parent / "outside"
    outside.mkdir()
    (outside / "secret.md").write_text("secret " * 10_000)
    (outside / "secret.pt").write_bytes(b"secret")
    for folder in ("sources", "checkpoints"):
        (layout.root / folder / "link").symlink_to(outside)
    (layout.checkpoints / "code.pt").write_bytes(pickle.dumps(Owned(outside / "ran")))
    return outside


class Owned:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_no_record_in_redis_harms_a_worker_or_leaves_the_root(
    gptjobs: Commands, workers: Workers, store: Store, door: "redis.Redis", secret: Path, redis_url: str
) -> None:
    app, ids = broker.connect(redis_url), [*SPECS, *RECORDS]
    victim = gptjobs.ok("submit", "train", "-q", *TINY, "--name", "victim", "--device", "cuda")
    before = beside(gptjobs.layout.root)
    for id in ids:
        write(door, id, record_of(id, SPECS.get(id, NO_DATA), RECORDS.get(id, {})))
    write(door, "another", record_of(victim, NO_DATA, {}) | {"token": 7})
    for id, fields in RECORDS.items():
        write(door, f"{id}.leased", record_of(f"{id}.leased", NO_DATA, {"state": "running", **fields}), among=LEASED)
    door.set(JOB + "noHash", "x")
    door.zadd(JOBS, {"noHash": 1, ESCAPE: 1})
    door.sadd(WAITING, "noHash", ESCAPE)
    for name, presence in ((ESCAPE, "{"), ("deep", "[" * 100_000), ("time", '{"started_at": NaN}')):
        door.set(WORKER + name, presence)
    worker = workers.start()
    with app.connection_for_write() as connection, connection.channel() as channel:
        producer = Producer(channel)
        nonsense = [["a"], 1], [{}, "x"], [ESCAPE, 1], ["reason", {}], [], [1, 2, 3], ["../../x", 1]
        for arguments in (*([id, 1] for id in (*ids, "another")), *nonsense):
            app.send_task(broker.TASK, args=arguments, queue="any", producer=producer)

    good = gptjobs.ok("submit", "train", "-q", *TINY)
    gptjobs.ok("wait", good, "--timeout", "90")
    assert worker.poll() is None
    taken = {job.spec.id: job for job in eventually(lambda: ended(store, victim))}
    for id in ("parentup", "parentabsolute", "parentlink", "dataup", "dataabsolute", "datalink"):
        assert taken[id].state is JobState.FAILED
        assert "leads out of the storage root" in (taken[id].reason or "")
    assert "code" in (taken["parentcode"].reason or "")
    for id in ("text", "bool", "giant", "nan", "list", "steps"):
        assert id not in taken or taken[id].state is JobState.FAILED
    assert store.get(victim).state is JobState.QUEUED
    assert not list(gptjobs.layout.attempts(victim).glob("*"))
    assert {each.name for each in beside(gptjobs.layout.root) - before} == {"worker.log"}

    words = (
        "list",
        "list --json",
        "worker list",
        "doctor",
        *(f"explain {id}" for id in RECORDS),
        "show reason",
        "show id",
    )
    for done in (gptjobs(*each.split()) for each in words):
        assert "Traceback" not in done.stderr
        assert drives_no_terminal(done.stdout) and drives_no_terminal(done.stderr)
    json.loads(gptjobs.ok("list", "--json"), parse_constant=pytest.fail)
    assert_pictures_drive_no_terminal(store)


def drives_no_terminal(text: str) -> bool:
    return len(text) < 60_000 and all(line == plain(line) for line in text.split("\n"))


def assert_pictures_drive_no_terminal(store: Store) -> None:
    """What `watch` and Flower make of the jobs."""
    jobs = store.all()
    pictures = [screen.all_jobs(screen.SeenAll(jobs=jobs, workers=store.workers()), 200, 200)]
    pictures += [screen.one_job(screen.Seen(job=job), 200, 50) for job in jobs]
    assert all(drives_no_terminal(line.plain) for picture in pictures for line in picture)
    for job in jobs:
        assert drives_no_terminal(in_one_line(job))
        task = JobTask(uuid=job.spec.id)
        task.take(json.loads(json.dumps(job.to_dict(), allow_nan=False)), job.token)
        assert all(drives_no_terminal(str(each)) for each in pages.row(task).values())


def ended(store: Store, but: str) -> list[Job]:
    """All jobs, once all but that one have ended, also those whose lost lease was taken away."""
    jobs = store.all()
    return jobs if all(job.state.is_terminal or job.spec.id == but for job in jobs) else []


@pytest.mark.parametrize(
    ("content_type", "body"), [("application/x-python-serialize", "pickle"), ("application/x-yaml", "yaml")]
)
def test_a_message_that_is_no_json_runs_nothing(
    gptjobs: Commands, workers: Workers, redis_url: str, tmp_path: Path, content_type: str, body: str
) -> None:
    owned = tmp_path / "owned"
    bodies = {"pickle": pickle.dumps(Owned(owned)), "yaml": f"!!python/object/apply:os.mkdir ['{owned}']".encode()}
    worker = workers.start()
    headers = {"task": broker.TASK, "id": "0123456789ab", "lang": "py", "argsrepr": "()"}
    with Connection(redis_url) as connection, connection.channel() as channel:
        Queue("any")(channel).declare()
        Producer(channel).publish(
            bodies[body], routing_key="any", headers=headers, content_type=content_type, content_encoding="binary"
        )
    eventually(lambda: "ContentDisallowed" in workers.log() or "Refusing to deserialize" in workers.log())
    job = gptjobs.ok("submit", "train", "-q", *TINY)
    gptjobs.ok("wait", job, "--timeout", "90")
    assert worker.poll() is None
    assert not owned.exists()
