"""Hosts with different versions of gptjobs: both are named, nothing is lost, and the others' jobs are done."""

import json

from gptjobs import __version__
from gptjobs.job import JobState
from gptjobs.presence import Presence
from tests.conftest import eventually
from tests.faults.scene import Scene


def test_a_job_of_a_later_version_waits_for_a_worker_that_reads_it_and_no_other_waits_for_it(scene: Scene) -> None:
    later = scene.submit(["train"], name="later", steps=20)
    key = f"gptjobs:job:{later}"
    spec = json.loads(scene.store._redis.hget(key, "spec"))
    scene.store._redis.hset(key, "spec", json.dumps({**spec, "schema": 2, "version": "9.9.9"}))
    worker = scene.worker()
    both = f"was submitted by gptjobs 9.9.9; {__version__} here cannot read it"
    eventually(lambda: both in worker.log, 30)
    assert scene.ends(scene.submit(["train"], name="now", steps=20)) == "finished"
    assert scene.store._redis.hget(key, "state") == JobState.QUEUED.value
    shown = scene.gptjobs("show", later)
    assert (shown.returncode, both in shown.stderr) == (3, True), shown.stderr
    assert json.loads(scene.store._redis.hget(key, "spec"))["schema"] == 2


def test_a_client_says_that_the_workers_cannot_read_its_jobs(scene: Scene) -> None:
    older = Presence(
        name="old@host", host="host", version="0.0.9", schema=0, queues=["cpu", "any"], slots=["cpu"],
        busy=0, jobs=[], started_at=1.0,
    )  # fmt: skip
    scene.store.announce(older)
    refused = scene.gptjobs(*scene.submission(), "--require-worker")
    assert refused.returncode == 6
    assert f"no worker reads jobs of gptjobs {__version__}: old@host (0.0.9)" in refused.stderr


def test_a_worker_keeps_the_fields_that_a_later_client_added(scene: Scene) -> None:
    job = scene.submit(["train"], name="later")
    key = f"gptjobs:job:{job}"
    spec = {**json.loads(scene.store._redis.hget(key, "spec")), "gang": {"size": 8}}
    scene.store._redis.hset(key, "spec", json.dumps(spec))
    scene.layout.job_file(job).unlink()  # as of a client that has no storage root
    scene.worker()
    scene.saves(job)
    assert json.loads(scene.layout.job_file(job).read_text()) == spec
    scene.store._redis.flushall()

    def is_back() -> bool:
        return bool(scene.store._redis.exists(key))

    eventually(is_back, 20)
    assert json.loads(scene.store._redis.hget(key, "spec")) == spec
