"""`gptjobs worker list`: what workers tell of themselves, and since when they are silent."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from gptjobs import __version__, broker
from gptjobs.cli import roster
from gptjobs.job import JobSpec
from gptjobs.layout import Layout
from gptjobs.leases import LeaseStore
from gptjobs.presence import Device, Presence
from gptjobs.store import WORKER_PRESENCE_S, Store
from tests.conftest import Commands, Workers, eventually
from tests.integration.test_tls import TINY
from worker import rescue
from worker.host import Host
from worker.tasks import Station

OLD = Presence(
    name="old@b", host="b", version="0.0.9", queues=["mps", "any"], slots=["mps"], busy=1, jobs=["3f9a01c2d4e5"],
    started_at=1.0,
)  # fmt: skip


def listed(gptjobs: Commands) -> dict[str, dict[str, Any]]:
    workers = json.loads(gptjobs.ok("worker", "list", "--json"))["workers"]
    return {each["name"].partition("@")[0]: each for each in workers}


def test_a_worker_tells_its_device_its_memory_its_versions_and_its_job_with_how_far_it_is(
    gptjobs: Commands, workers: Workers
) -> None:
    workers.start("mac", slots=2)
    job = gptjobs.ok("submit", "train", "-q", *TINY, "--steps", "1000000", "--name", "owls")
    told = eventually(lambda: (found := listed(gptjobs)["mac"])["devices"] and found["training"] and found)
    assert [each["name"] for each in told["devices"]] == ["cpu"] and told["devices"][0]["product"].endswith(" cores")
    assert 0 < told["devices"][0]["memory_free"] < told["devices"][0]["memory"] == told["memory"]
    assert (told["version"], told["versions"]["torch"]) == (__version__, torch.__version__)
    assert (told["slots"], told["busy"], told["jobs"]) == (["cpu", "cpu"], 1, [job])
    eventually(lambda: "owls 0%" in gptjobs.ok("worker", "list"))
    header, line = gptjobs.ok("worker", "list").splitlines()
    assert tuple(header.split()) == roster.HEADERS
    assert line.startswith(told["name"] + " ") and " 1/2 " in line
    assert len(line) <= 100
    (training,) = listed(gptjobs)["mac"]["training"]
    assert (training["id"], training["name"], training["end_step"]) == (job, "owls", 1000000)


def test_since_when_a_worker_is_silent_is_told_by_the_clock_of_redis_alone(gptjobs: Commands, store: Store) -> None:
    store.announce(OLD)
    assert 0 <= (store.seen_s([OLD])[0] or 0) < WORKER_PRESENCE_S
    store._redis.pexpire("gptjobs:worker:old@b", 1000 * WORKER_PRESENCE_S - 7000)
    assert 7 <= listed(gptjobs)["old"]["seen_s"] < WORKER_PRESENCE_S
    store._redis.persist("gptjobs:worker:old@b")
    gone = Presence(**{**vars(OLD), "name": "gone@b"})
    assert store.seen_s([OLD, gone]) == [None, None]


def test_of_a_worker_of_an_earlier_version_the_rest_is_a_dash(gptjobs: Commands, store: Store) -> None:
    record = {name: value for name, value in OLD.to_dict().items() if name not in ("devices", "versions", "memory")}
    store._redis.set("gptjobs:worker:old@b", json.dumps(record), ex=WORKER_PRESENCE_S)
    _, line = gptjobs.ok("worker", "list").splitlines()
    words = line.split()
    assert words[:5] == ["old@b", "mps", "-", "1/1", "3f9a01c2d4e5"] and words[-3:] == ["0.0.9", "-", "-"]


def test_each_further_device_and_job_has_a_line_of_its_own(store: Store) -> None:
    store.submit(JobSpec(id="3f9a01c2d4e5", kind="train", name="a-job-with-a-very-long-name", submitted_at=1.0))
    jobs = {each.spec.id: each for each in store.all()}
    devices = [Device(name="cuda:0", product="NVIDIA H200", memory=150 * 10**9, memory_free=139 * 10**9)]
    box = Presence(
        **{**vars(OLD), "slots": ["cuda:0", "cuda:0", "cuda:1"], "jobs": [*OLD.jobs, "b", "c"], "devices": devices}
    )
    first, second, third = roster.lines(box, 3.4, jobs)
    assert first[:6] == ("old@b", "cuda:0 NVIDIA H200", "139/150 GB", "1/3", "a-job-with-a-ve…", "3 s")
    assert second[:5] == ("", "cuda:1", "-", "", "b") and third[:5] == ("", "", "", "", "c")


@pytest.mark.parametrize(("columns", "last"), [(200, "PYTHON"), (55, "GPTJOBS"), (20, "SEEN")])
def test_on_a_narrow_terminal_the_last_columns_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int, last: str
) -> None:
    here = Presence(**{**vars(OLD), "versions": {"torch": "2.13.0+cpu", "python": "3.11.7"}})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    roster.table([here], [3.0], {})
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == last
    assert len(line) <= max(columns, 60)


SMI = """#!/bin/sh
case "$1" in
    -L) echo "GPU 0: NVIDIA H200 (UUID: x)" ;;
    --query-gpu=index,name,*) %s ;;
    *) exit 9 ;;
esac
"""


@pytest.mark.parametrize("driver", ["answers", "hangs"])
def test_a_gpu_is_told_by_its_product_and_one_whose_driver_hangs_by_its_name(
    gptjobs: Commands, store: Store, tmp_path: Path, driver: str
) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(SMI % {"answers": "echo 0, NVIDIA H200, 143771, 143000", "hangs": "exec sleep 1000"}[driver])
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    worker = gptjobs.start("worker", "start", env={**gptjobs.environment, "PATH": path}, stderr=subprocess.DEVNULL)
    try:
        there = eventually(lambda: (found := listed(gptjobs).get("worker")) and (found["devices"] or []) and found)
        (device,) = there["devices"]
        known = device["product"] == "NVIDIA H200" and device["memory"] == 143771 << 20
        assert known is (driver == "answers")
        _, line = gptjobs.ok("worker", "list").splitlines()
        assert ("cuda:0 NVIDIA H200  150/151 GB" in line) is (driver == "answers") and "cuda:0" in line
    finally:
        worker.kill()
        worker.wait()


def test_a_worker_announces_itself_while_its_devices_do_not_answer(
    layout: Layout, redis_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(rescue.conditions, "devices", lambda slots: answers.wait() and [])
    host = Host(worker="mac@here", slots=("cpu",))
    made = rescue.Rescue(Station(host=host, layout=layout, store=LeaseStore(redis_url), app=broker.connect(redis_url)))
    made.start()
    try:
        key = "gptjobs:worker:mac@here"
        eventually(lambda: store._redis.pexpire(key, 5000), 20)
        eventually(lambda: store._redis.pttl(key) > 10_000, 20)
    finally:
        made.stop()
        answers.set()
    assert store.workers() == []
