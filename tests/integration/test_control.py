"""What users ask of the queue, without a worker: priorities, the same job twice, repair after a flush, waiting."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gptjobs import checkpoint, record, storage
from gptjobs.job import Cause, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.leases import Fenced, Lease, LeaseStore
from gptjobs.store import Store
from tests.conftest import Commands, eventually
from worker.attempt import Attempt
from worker.lease import HeldLease
from worker.supervisor import Drain

TRAIN = ("submit", "train", "-q", "--data", "sources/text.md", "--encoding", "bytes", "--model", "nano")


def submitted(gptjobs: Commands, *options: str) -> str:
    return gptjobs.ok(*TRAIN, *options)


def claimed(store: Store, layout: Layout, job: str) -> Lease:
    """The lease of a worker that began the job's first attempt."""
    leases = LeaseStore(store._url)
    found = leases.get(job)
    lease = leases.claim(job, found.serial, floor=0, nonce="n1", worker="a@host", device="cpu")
    assert lease is not None
    checkpoint.begin_attempt(layout, job, lease.token, None, worker="a@host", device="cpu")
    return lease


def shown(store: Store) -> dict[str, tuple[JobState, str | None, int]]:
    return {job.spec.id: (job.state, job.reason, job.priority) for job in store.all()}


def doorbells(store: Store, queue: str) -> list[list[Any]]:
    """Job and serial of the rings in a queue, soonest first."""
    found = []
    for key in sorted(store._redis.keys(f"{queue}*"), key=lambda key: int(key.partition("\x16")[2] or 0)):
        for message in reversed(store._redis.lrange(key, 0, -1)):
            headers = json.loads(message)["headers"]
            found.append([headers["id"], headers["argsrepr"]])
    return found


def test_a_waiting_job_moves_with_its_priority(gptjobs: Commands, store: Store) -> None:
    first, second = submitted(gptjobs), submitted(gptjobs)
    assert [job for job, _ in doorbells(store, "any")] == [first, second]
    assert "priority 5 → 9" in gptjobs("priority", second, "9").stderr
    assert doorbells(store, "any")[0][0] == second
    assert store.get(second).serial == 2
    assert json.loads(gptjobs.ok("show", second, "--json"))["priority"] == 9


def test_a_job_that_ended_has_no_priority(gptjobs: Commands) -> None:
    job = submitted(gptjobs)
    gptjobs.ok("cancel", job)
    done = gptjobs("priority", job, "1")
    assert (done.returncode, f"hint: gptjobs retry {job}" in done.stderr) == (3, True), done.stderr


def test_a_waiting_job_is_paused_and_rung_for_again_when_it_is_unpaused(gptjobs: Commands, store: Store) -> None:
    job = submitted(gptjobs)
    assert gptjobs.ok("pause", job).split() == [job, "paused"]
    assert "Nothing happens by itself." in gptjobs.ok("explain", job)
    assert gptjobs.ok("unpause", job).split() == [job, "queued"]
    assert (store.get(job).serial, len(doorbells(store, "any"))) == (2, 2)
    assert record.asked(gptjobs.layout, job, "pause") is None


def test_the_same_key_gives_the_same_job_also_from_two_clients_at_once(gptjobs: Commands, store: Store) -> None:
    command = (*TRAIN, "--idempotency-key", "friday")
    clients = [gptjobs.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    printed = {client.communicate(timeout=60)[0].decode().strip() for client in clients}
    assert [client.returncode for client in clients] == [0, 0]
    assert printed == {job.spec.id for job in store.all()}
    again = gptjobs("submit", "train", *TRAIN[3:], "--idempotency-key", "friday")
    assert again.stdout.strip() in printed and "nothing was queued again" in again.stderr
    assert len(store.all()) == 1


def test_the_same_key_for_another_request_is_refused(gptjobs: Commands, store: Store) -> None:
    job = submitted(gptjobs, "--idempotency-key", "friday")
    done = gptjobs(*TRAIN, "--idempotency-key", "friday", "--steps", "7")
    assert done.returncode == 3
    assert f"job {job} was submitted with this idempotency key" in done.stderr
    assert [each.spec.id for each in store.all()] == [job]


def test_a_key_that_was_used_before_a_flush_does_not_train_its_job_again(gptjobs: Commands, store: Store) -> None:
    job = submitted(gptjobs, "--idempotency-key", "friday")
    record.write_outcome(gptjobs.layout, job, Outcome(state=JobState.FINISHED, reason="finished"), 0)
    store._redis.flushall()
    assert submitted(gptjobs, "--idempotency-key", "friday") == job
    assert store.get(job).state is JobState.FINISHED
    assert doorbells(store, "any") == []


def test_repair_puts_every_job_back_as_it_was(gptjobs: Commands, store: Store) -> None:
    layout = gptjobs.layout
    queued, paused, cancelled, finished = (submitted(gptjobs) for _ in range(4))
    gptjobs.ok("priority", queued, "0")
    gptjobs.ok("pause", paused)
    gptjobs.ok("cancel", cancelled)
    lease = claimed(store, layout, finished)
    ended = Outcome(state=JobState.FINISHED, reason="target")
    record.write_outcome(layout, finished, ended, lease.token)
    LeaseStore(store._url).finish(lease, ended, fruitless={}, progress=None)
    before = shown(store)
    assert len(before) == 4

    store._redis.flushall()
    listed = gptjobs("list")
    assert "4 more on record" in listed.stderr and "gptjobs repair" in listed.stderr
    assert "4 jobs missing in Redis" in gptjobs("repair", "--dry-run").stderr
    assert store.all() == []
    gptjobs.ok("repair")
    assert shown(store) == before
    assert [job for job, _ in doorbells(store, "any")] == [queued]
    assert "no job is missing in Redis" in gptjobs("repair").stderr


def test_repair_leaves_a_job_to_the_worker_that_trains_it_and_fences_one_that_is_gone(
    gptjobs: Commands, store: Store
) -> None:
    layout = gptjobs.layout
    held, lost = submitted(gptjobs), submitted(gptjobs)
    lease, late = claimed(store, layout, held), claimed(store, layout, lost)
    store._redis.flushall()
    leases = LeaseStore(store._url)
    repair = gptjobs.start("repair", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert repair.stderr is not None
    assert b"2 had begun" in repair.stderr.readline()
    leases.put_back(record.read_job(layout, held), lease, "a@host", "cpu")
    printed, said = (each.decode() for each in repair.communicate(timeout=60))
    assert repair.returncode == 0, said
    assert printed.split() == [lost, "queued"]
    assert leases.renew(lease, None) == (JobState.RUNNING, False)
    job = store.get(lost)
    assert (job.state, job.cause, job.reason) == (JobState.QUEUED, Cause.LOST_HOST, "lost a@host")
    heir = leases.claim(lost, job.serial, floor=job.token, nonce="n2", worker="b@host", device="cpu")
    assert heir is not None and heir.token > late.token
    with pytest.raises(Fenced):
        leases.renew(late, None)


def test_a_cancelled_job_is_not_revived_by_a_flush_and_repair(gptjobs: Commands, store: Store) -> None:
    job = submitted(gptjobs)
    claimed(store, gptjobs.layout, job)
    assert gptjobs.ok("cancel", job).startswith(f"{job}  cancelling")
    store._redis.flushall()
    assert gptjobs.ok("repair").split() == [job, "cancelled"]
    assert store.get(job).state is JobState.CANCELLED
    outcome = record.read_outcome(gptjobs.layout, job)
    assert outcome is not None and outcome.state is JobState.CANCELLED


def test_a_job_whose_end_is_on_record_is_not_cancelled(gptjobs: Commands, store: Store) -> None:
    job = submitted(gptjobs)
    lease = claimed(store, gptjobs.layout, job)
    ended = Outcome(state=JobState.FINISHED, reason="finished")
    record.write_outcome(gptjobs.layout, job, ended, lease.token)
    lost = Outcome(state=JobState.QUEUED, reason="lost a@host", cause=Cause.LOST_HOST)
    assert LeaseStore(store._url).reap(store.get(job), lost, {}) is JobState.QUEUED
    assert gptjobs.ok("cancel", job) == f"{job}  finished"
    assert record.asked(gptjobs.layout, job, "cancel") is None


def test_a_wait_for_any_ends_with_the_first(gptjobs: Commands) -> None:
    first, second = submitted(gptjobs), submitted(gptjobs)
    waiting = gptjobs.start("wait", "--any", first, second, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    gptjobs.ok("cancel", second)
    printed, _ = waiting.communicate(timeout=60)
    assert (waiting.returncode, printed.decode().split()) == (10, [second, "cancelled"])


def test_a_wait_for_a_job_that_is_not_there_yet_blocks_until_it_is(gptjobs: Commands) -> None:
    waiting = gptjobs.start("wait", "tonight", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert waiting.stderr is not None
    assert b"'tonight'" in waiting.stderr.readline()
    job = submitted(gptjobs, "--name", "tonight")
    gptjobs.ok("cancel", job)
    printed, _ = waiting.communicate(timeout=60)
    assert (waiting.returncode, printed.decode().split()) == (10, [job, "cancelled"])
    late = gptjobs("wait", "tomorrow", "--timeout", "0")
    assert (late.returncode, "no job is called tomorrow after 0 s" in late.stderr) == (124, True)


def test_a_retry_is_a_new_job_of_the_same_request(gptjobs: Commands, store: Store) -> None:
    job = submitted(gptjobs, "--name", "night", "--steps", "7", "--priority", "8")
    refused = gptjobs("retry", job)
    assert (refused.returncode, "is queued: it has not ended" in refused.stderr) == (3, True)
    gptjobs.ok("cancel", job)
    again = store.get(gptjobs.ok("retry", job))
    old = store.get(job).spec
    assert again.spec.id != job and again.state is JobState.QUEUED
    assert (again.spec.overrides, again.spec.name, again.spec.priority) == (old.overrides, "night", 8)


def test_a_worker_that_is_not_there_cannot_be_drained(gptjobs: Commands) -> None:
    done = gptjobs("worker", "drain", "mac")
    assert (done.returncode, "no worker is called 'mac'" in done.stderr) == (4, True), done.stderr


def test_a_client_is_told_that_a_request_is_on_record_where_redis_goes_away(gptjobs: Commands, store: Store) -> None:
    job = submitted(gptjobs)
    store._redis.config_set("maxmemory", 1)
    try:
        done = gptjobs("pause", job)
    finally:
        store._redis.config_set("maxmemory", 0)
    assert (done.returncode, "the request is on record" in done.stderr) == (5, True), done.stderr
    eventually(lambda: record.asked(gptjobs.layout, job, "pause"), 1)


def test_a_job_that_trains_while_redis_forgot_it_is_left_to_its_holder_by_a_second_submission(
    gptjobs: Commands, store: Store
) -> None:
    job = submitted(gptjobs, "--idempotency-key", "friday")
    lease = claimed(store, gptjobs.layout, job)
    store._redis.flushall()
    assert submitted(gptjobs, "--idempotency-key", "friday") == job
    leases = LeaseStore(store._url)
    assert leases.put_back(record.read_job(gptjobs.layout, job), lease, "a@host", "cpu")
    assert leases.renew(lease, None) == (JobState.RUNNING, False)


def test_a_client_without_the_root_unpauses_a_job_whose_pause_is_on_record(
    gptjobs: Commands, store: Store, tmp_path: Path
) -> None:
    job = submitted(gptjobs)
    gptjobs.ok("pause", job)
    (tmp_path / "laptop").mkdir()
    gptjobs.ok("unpause", job, GPTJOBS_ROOT=str(tmp_path / "laptop"))
    leases = LeaseStore(store._url)
    found = leases.get(job)
    assert found.is_unpaused
    assert record.asked(gptjobs.layout, job, "pause") == "paused"
    lease = leases.claim(job, found.serial, floor=0, nonce="n1", worker="a@host", device="cpu")
    assert lease is not None
    held = HeldLease(leases, lease, found.spec, gptjobs.layout, "a@host", "cpu", lambda *_: None)
    gptjobs.layout.request_file(job, "cancel").write_text("{}")  # so that no trainer is started here
    assert Attempt(gptjobs.layout, found, held, "a@host", "cpu", Drain()).run().outcome.state is JobState.CANCELLED
    assert record.asked(gptjobs.layout, job, "pause") is None


def test_a_client_without_the_root_asks_what_one_with_it_asks(gptjobs: Commands, store: Store, tmp_path: Path) -> None:
    store.root(storage.identity(gptjobs.layout))  # as the first worker says it
    job = submitted(gptjobs)
    (tmp_path / "laptop").mkdir()
    for asked, state in (("pause", "paused"), ("unpause", "queued"), ("cancel", "cancelled")):
        gptjobs.ok(asked, job, GPTJOBS_ROOT=str(tmp_path / "laptop"))
        assert store.get(job).state == state
    again = gptjobs.ok("retry", job, "--from-scratch", GPTJOBS_ROOT=str(tmp_path / "laptop"))
    gptjobs.ok("priority", again, "9", GPTJOBS_ROOT=str(tmp_path / "laptop"))
    assert store.get(again).priority == 9
    assert list((tmp_path / "laptop").iterdir()) == []


def test_an_attempt_begins_nothing_once_a_later_one_is_on_record(gptjobs: Commands, store: Store) -> None:
    layout = gptjobs.layout
    job = submitted(gptjobs)
    leases = LeaseStore(store._url)
    found = leases.get(job)
    lease = leases.claim(job, found.serial, floor=0, nonce="n1", worker="a@host", device="cpu")
    assert lease is not None
    checkpoint.begin_attempt(layout, job, lease.token + 1, None, worker="b@host", device="cpu")
    held = HeldLease(leases, lease, found.spec, layout, "a@host", "cpu", lambda *_: None)
    outcome = Attempt(layout, found, held, "a@host", "cpu", Drain()).run().outcome
    assert (outcome.state, outcome.cause) == (JobState.QUEUED, Cause.STOPPED)
    assert [each.token for each in checkpoint.attempts(layout, job)] == [lease.token + 1]
