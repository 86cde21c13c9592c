"""The lease, against a real server: one holder at a time, tokens that only grow, and nothing lost on the way."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from gptjobs.errors import NotFound, Refused
from gptjobs.job import TERMINAL, WAYS, Cause, JobSpec, JobState, Outcome, new_job
from gptjobs.leases import Fenced, Lease, LeaseStore, RecordMissing
from gptjobs.presence import Presence

JOB = "3f9a00000001"
SPEC = JobSpec(id=JOB, kind="train", submitted_at=1.0)
FINISHED = Outcome(state=JobState.FINISHED, reason="finished")
LOST = Outcome(state=JobState.QUEUED, reason="lost a@host", cause=Cause.LOST_HOST)
DRAINED = Outcome(state=JobState.QUEUED, reason="worker stopped")


@pytest.fixture
def leases(redis_url: str) -> LeaseStore:
    """The lease's connection, to a server with one queued job."""
    made = LeaseStore(redis_url)
    assert made.submit(SPEC)
    return made


def claim(leases: LeaseStore, serial: int = 1, floor: int = 0, nonce: str = "n1", worker: str = "a@host") -> Lease:
    lease = leases.claim(JOB, serial, floor=floor, nonce=nonce, worker=worker, device="cpu")
    assert lease is not None
    return lease


def refused(leases: LeaseStore, serial: int = 1) -> bool:
    """Whether a ring with that serial gets no lease, and changes nothing."""
    before = leases._redis.hgetall(f"gptjobs:job:{JOB}")
    lease = leases.claim(JOB, serial, floor=0, nonce="late", worker="late@host", device="cpu")
    return lease is None and leases._redis.hgetall(f"gptjobs:job:{JOB}") == before


def brought_to(leases: LeaseStore, state: JobState) -> Lease | None:
    """Bring the job into `state`; the lease, where it has a trainer there."""
    if state is JobState.QUEUED:
        return None
    lease = claim(leases)
    if state in (JobState.CANCELLING, JobState.CANCELLED):
        leases.ask("cancel", JOB, "cancelled")
    if state is JobState.PAUSING:
        leases.ask("pause", JOB, "paused")
    if state.has_trainer:
        return lease
    leases.finish(lease, Outcome(state=state, reason=state.value), fruitless={}, progress=None)
    return None


def test_a_claim_makes_a_queued_job_run(leases: LeaseStore) -> None:
    lease = claim(leases, nonce="n1", worker="a@host")
    job = leases.get(JOB)
    assert (job.state, job.token, job.beat, job.attempt) == (JobState.RUNNING, lease.token, 0, 1)
    assert (job.worker, job.used_device, lease.attempt) == ("a@host", "cpu", 1)
    assert leases.waiting() == []
    assert [each.spec.id for each in leases.leased()] == [JOB]


@pytest.mark.parametrize("serial", [0, 2])
def test_a_doorbell_with_another_serial_is_ignored(leases: LeaseStore, serial: int) -> None:
    assert refused(leases, serial)
    assert [each.spec.id for each in leases.waiting()] == [JOB]


def test_ringing_twice_gives_one_claim(leases: LeaseStore) -> None:
    first = claim(leases)
    assert refused(leases)
    assert leases.renew(first, None) == (JobState.RUNNING, False)


@pytest.mark.parametrize("state", [each for each in JobState if each is not JobState.QUEUED])
def test_only_a_queued_job_is_claimed(leases: LeaseStore, state: JobState) -> None:
    brought_to(leases, state)
    assert leases.get(JOB).state is state
    assert refused(leases, leases.get(JOB).serial)


def test_a_job_without_a_record_is_not_claimed(leases: LeaseStore) -> None:
    leases._redis.flushall()
    assert refused(leases)


def test_of_twenty_workers_that_claim_at_once_exactly_one_wins(leases: LeaseStore, redis_url: str) -> None:
    together = threading.Barrier(20)

    def worker(number: int) -> Lease | None:
        own = LeaseStore(redis_url)
        own.ping()
        together.wait(30)
        try:
            return own.claim(JOB, 1, floor=0, nonce=f"n{number}", worker=f"{number}@host", device="cpu")
        finally:
            own._redis.close()

    with ThreadPoolExecutor(20) as pool:
        won = [each for each in pool.map(worker, range(20)) if each is not None]
    assert len(won) == 1
    assert leases.renew(won[0], None) == (JobState.RUNNING, False)
    assert leases.get(JOB).attempt == 1


@pytest.mark.parametrize(("in_redis", "floor"), [(0, 0), (3, 0), (0, 7), (3, 7), (7, 3), (1000, 9)])
def test_a_token_exceeds_that_of_redis_and_every_one_in_the_root(leases: LeaseStore, in_redis: int, floor: int) -> None:
    leases._redis.hset(f"gptjobs:job:{JOB}", "token", in_redis)
    assert claim(leases, floor=floor).token > max(in_redis, floor)


@pytest.mark.parametrize("change", [{"nonce": "n2"}, {"token": 0}, {"token": 2}, {"token": 2, "nonce": "n2"}])
def test_nobody_but_the_holder_renews_or_finishes(leases: LeaseStore, change: dict[str, object]) -> None:
    holder = claim(leases, nonce="n1")
    other = replace(holder, **change)
    before = leases.get(JOB)
    with pytest.raises(Fenced):
        leases.renew(other, {"tokens": 666})
    with pytest.raises(Fenced):
        leases.finish(other, FINISHED, fruitless={}, progress={"tokens": 666})
    assert leases.get(JOB) == before


def test_each_renewal_is_a_beat_and_the_newest_progress_wins(leases: LeaseStore) -> None:
    lease = claim(leases)
    leases.renew(lease, {"step": 10, "train_loss": 6.5})
    leases.renew(lease, {"tokens": 20})
    assert (leases.get(JOB).beat, leases.get(JOB).progress) == (2, {"tokens": 20})
    leases.renew(lease, None)
    assert (leases.get(JOB).beat, leases.get(JOB).progress) == (3, {"tokens": 20})
    leases.finish(lease, FINISHED, fruitless={}, progress={"tokens": 30})
    assert leases.get(JOB).progress == {"tokens": 30}


def test_a_renewal_tells_of_a_cancel_request(leases: LeaseStore) -> None:
    lease = claim(leases)
    assert leases.renew(lease, None) == (JobState.RUNNING, False)
    assert leases.ask("cancel", JOB, "cancelled") is JobState.CANCELLING
    assert leases.renew(lease, None) == (JobState.CANCELLING, False)


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_a_finished_lease_ends_the_job(leases: LeaseStore, state: JobState) -> None:
    lease = claim(leases)
    leases.finish(lease, Outcome(state=state, reason="why"), fruitless={Cause.HUNG: 3}, progress=None)
    job = leases.get(JOB)
    assert (job.state, job.reason, job.fruitless, job.serial) == (state, "why", {Cause.HUNG: 3}, 1)
    assert leases.leased() == leases.waiting() == []
    with pytest.raises(Fenced):
        leases.renew(lease, None)


def test_a_drained_job_waits_under_a_new_serial(leases: LeaseStore) -> None:
    first = claim(leases)
    leases.finish(first, DRAINED, fruitless={}, progress=None)
    job = leases.get(JOB)
    assert (job.state, job.serial, job.reason) == (JobState.QUEUED, 2, "worker stopped")
    assert [each.spec.id for each in leases.waiting()] == [JOB]
    assert leases.leased() == []
    assert refused(leases, 1)
    second = claim(leases, serial=2, nonce="n2")
    assert second.token > first.token and second.attempt == 2


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.PAUSED])
def test_a_cancel_request_outlives_a_drain_that_comes_with_it(leases: LeaseStore, state: JobState) -> None:
    lease = claim(leases)
    leases.ask("cancel", JOB, "cancelled")
    leases.finish(lease, Outcome(state=state, reason="worker stopped"), fruitless={}, progress=None)
    assert leases.get(JOB).state is JobState.CANCELLED
    assert leases.waiting() == leases.leased() == []


def test_a_fenced_holder_cannot_finish(leases: LeaseStore) -> None:
    frozen = claim(leases)
    assert leases.reap(leases.get(JOB), LOST, {}) is JobState.QUEUED
    heir = claim(leases, serial=2, nonce="n2", worker="b@host")
    with pytest.raises(Fenced):
        leases.finish(frozen, FINISHED, fruitless={}, progress={"tokens": 666})
    with pytest.raises(Fenced):
        leases.renew(frozen, {"tokens": 666})
    assert leases.renew(heir, None) == (JobState.RUNNING, False)
    assert leases.get(JOB).progress == {}


def test_a_reaped_lease_is_fenced_before_anybody_claims_it_again(leases: LeaseStore) -> None:
    lease = claim(leases)
    leases.reap(leases.get(JOB), LOST, {})
    with pytest.raises(Fenced):
        leases.renew(lease, None)


@pytest.mark.parametrize(
    ("state", "after"),
    [
        (JobState.RUNNING, JobState.QUEUED),
        (JobState.CANCELLING, JobState.CANCELLED),
        (JobState.PAUSING, JobState.PAUSED),
    ],
)
def test_a_reaped_job_goes_where_it_was_asked_to_go(leases: LeaseStore, state: JobState, after: JobState) -> None:
    lease = brought_to(leases, state)
    assert lease is not None
    assert leases.reap(leases.get(JOB), LOST, {}) is after
    job = leases.get(JOB)
    assert (job.state, job.cause, job.token > lease.token) == (after, Cause.LOST_HOST, True)
    assert job.reason == ("lost a@host" if after is JobState.QUEUED else after.value)
    assert job.serial == (2 if after is JobState.QUEUED else 1)
    assert leases.leased() == []
    assert [each.spec.id for each in leases.waiting()] == ([JOB] if after is JobState.QUEUED else [])


def test_a_beat_since_the_reaper_looked_saves_the_lease(leases: LeaseStore) -> None:
    lease = claim(leases)
    seen = leases.get(JOB)
    leases.renew(lease, None)
    assert leases.reap(seen, LOST, {}) is None
    assert leases.renew(lease, None) == (JobState.RUNNING, False)


def test_a_new_holder_since_the_reaper_looked_saves_the_lease(leases: LeaseStore) -> None:
    claim(leases)
    seen = leases.get(JOB)
    leases.reap(seen, LOST, {})
    heir = claim(leases, serial=2, nonce="n2")
    assert leases.get(JOB).beat == seen.beat
    assert leases.reap(seen, LOST, {}) is None
    assert leases.renew(heir, None) == (JobState.RUNNING, False)


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.PAUSED, *sorted(TERMINAL)])
def test_a_job_without_a_trainer_is_not_reaped(leases: LeaseStore, state: JobState) -> None:
    brought_to(leases, state)
    before = leases.get(JOB)
    assert leases.reap(before, LOST, {}) is None
    assert leases.get(JOB) == before


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.PAUSED])
def test_a_waiting_job_is_cancelled_at_once(leases: LeaseStore, state: JobState) -> None:
    brought_to(leases, state)
    assert leases.ask("cancel", JOB, "cancelled") is JobState.CANCELLED
    assert leases.waiting() == []
    assert refused(leases)


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_a_job_that_ended_is_not_cancelled(leases: LeaseStore, state: JobState) -> None:
    brought_to(leases, state)
    before = leases.get(JOB)
    assert leases.ask("cancel", JOB, "too late") is state
    assert leases.get(JOB) == before


@pytest.mark.parametrize("way", ["cancel", "pause", "unpause"])
@pytest.mark.parametrize("state", list(JobState))
def test_what_users_ask_leads_on_only_by_the_ways_of_the_table(leases: LeaseStore, state: JobState, way: str) -> None:
    brought_to(leases, state)
    serial = leases.get(JOB).serial
    after = WAYS[way].get(state, state)
    assert leases.ask(way, JOB, "") is after
    job = leases.get(JOB)
    assert job.state is after
    assert [each.spec.id for each in leases.waiting()] == ([JOB] if after is JobState.QUEUED else [])
    assert [each.spec.id for each in leases.leased()] == ([JOB] if after.has_trainer else [])
    assert job.serial == serial + (way == "unpause" and state is JobState.PAUSED)


def test_an_unpaused_job_is_claimed_by_its_new_doorbell_alone(leases: LeaseStore) -> None:
    brought_to(leases, JobState.PAUSED)
    leases.ask("unpause", JOB, "")
    assert refused(leases, serial=1)
    assert claim(leases, serial=2, nonce="n2").attempt == 2


def test_a_job_that_was_unpaused_before_its_trainer_stopped_waits_for_the_next_one(leases: LeaseStore) -> None:
    lease = brought_to(leases, JobState.PAUSING)
    assert lease is not None
    leases.ask("unpause", JOB, "")
    assert leases.finish(lease, DRAINED, fruitless={}, progress=None) is JobState.QUEUED


def test_a_pause_request_turns_a_drain_into_a_pause(leases: LeaseStore) -> None:
    lease = brought_to(leases, JobState.PAUSING)
    assert lease is not None
    assert leases.finish(lease, DRAINED, fruitless={}, progress=None) is JobState.PAUSED
    assert leases.get(JOB).reason == "paused"


def test_an_attempt_that_cannot_go_on_holds_its_job(leases: LeaseStore) -> None:
    lease = claim(leases)
    held = Outcome(state=JobState.PAUSED, reason="no space", cause=Cause.NO_SPACE)
    assert leases.finish(lease, held, fruitless={}, progress=None) is JobState.PAUSED
    assert (leases.get(JOB).reason, leases.get(JOB).cause) == ("no space", Cause.NO_SPACE)


def test_cancelled_at_once_a_renewal_says_so_also_where_it_was_cancelled_before(leases: LeaseStore) -> None:
    lease = claim(leases)
    leases.ask("cancel", JOB, "cancelled")
    assert leases.renew(lease, None) == (JobState.CANCELLING, False)
    leases.ask("cancel", JOB, "cancelled", now=True)
    assert leases.renew(lease, None) == (JobState.CANCELLING, True)


def test_another_priority_makes_the_old_doorbell_void(leases: LeaseStore) -> None:
    assert leases.prioritize(JOB, 0) is JobState.QUEUED
    assert (leases.get(JOB).priority, leases.get(JOB).serial) == (0, 2)
    assert refused(leases, serial=1)
    lease = claim(leases, serial=2)
    leases.prioritize(JOB, 9)
    assert (leases.get(JOB).priority, leases.get(JOB).serial) == (9, 2)
    assert leases.renew(lease, None) == (JobState.RUNNING, False)


def test_a_job_that_is_not_there_cannot_be_cancelled(leases: LeaseStore) -> None:
    with pytest.raises(NotFound):
        leases.ask("cancel", "nothing", "cancelled")
    assert leases._redis.exists("gptjobs:job:nothing") == 0


def test_a_flushed_record_is_put_back_once(leases: LeaseStore) -> None:
    lease = claim(leases, floor=4)
    leases._redis.flushall()
    with pytest.raises(RecordMissing):
        leases.renew(lease, {"tokens": 10})
    with pytest.raises(RecordMissing):
        leases.finish(lease, FINISHED, fruitless={}, progress=None)
    held = replace(new_job(SPEC), state=JobState.RUNNING)
    assert leases.put_back(held, lease, "a@host", "cpu")
    assert not leases.put_back(held, replace(lease, token=99, nonce="other"), "b@host", "cpu")
    assert leases.renew(lease, {"tokens": 10}) == (JobState.RUNNING, False)
    job = leases.get(JOB)
    assert (job.spec, job.token, job.worker, job.progress) == (SPEC, lease.token, "a@host", {"tokens": 10})
    assert [each.spec.id for each in leases.leased()] == [each.spec.id for each in leases.all()] == [JOB]
    assert leases.reap(leases.get(JOB), LOST, {}) is JobState.QUEUED


def test_an_end_whose_answer_was_lost_is_said_again_and_stands(leases: LeaseStore) -> None:
    lease = claim(leases)
    back = Outcome(state=JobState.QUEUED, reason="worker stopped")
    assert leases.finish(lease, back, fruitless={}, progress=None) is JobState.QUEUED
    assert leases.finish(lease, back, fruitless={}, progress=None) is JobState.QUEUED
    heir = claim(leases, serial=2, nonce="n2", worker="b@host")
    assert leases.finish(lease, back, fruitless={}, progress=None) is JobState.QUEUED
    assert leases.renew(heir, None) == (JobState.RUNNING, False)


def test_a_record_of_a_later_version_hides_no_other(leases: LeaseStore) -> None:
    later = json.dumps({"schema": 2, "id": "other", "version": "9.0"})
    leases._redis.hset("gptjobs:job:other", mapping={"spec": later, "state": "queued", "serial": 1})
    leases._redis.zadd("gptjobs:jobs", {"other": 1.0})
    leases._redis.sadd("gptjobs:waiting", "other")
    assert [each.spec.id for each in leases.all()] == [each.spec.id for each in leases.waiting()] == [JOB]
    with pytest.raises(Refused, match=r"submitted by gptjobs 9.0; .* here cannot read it"):
        leases.get("other")


@pytest.mark.parametrize(
    "hostile",
    [
        {"name": "\x1b[2J"},
        {"name": 7},
        {"id": "../../etc"},
        {"device": "\x1b]0;title\x07"},
    ],
)
def test_a_record_that_no_client_writes_is_refused_and_hides_no_other(
    leases: LeaseStore, hostile: dict[str, object]
) -> None:
    spec = json.dumps({**SPEC.to_dict(), "id": "other", **hostile})
    numbers = {**dict.fromkeys(("serial", "token", "beat", "attempt"), 1), "fruitless": "{}"}
    leases._redis.hset("gptjobs:job:other", mapping={"spec": spec, "state": "queued", **numbers})
    leases._redis.zadd("gptjobs:jobs", {"other": 1.0})
    assert [each.spec.id for each in leases.all()] == [JOB]
    with pytest.raises(Refused) as refusal:
        leases.get("other")
    assert refusal.value.message.isprintable()


def test_what_others_wrote_into_a_record_drives_no_terminal_and_breaks_no_list(leases: LeaseStore) -> None:
    progress = {
        "stage": "\x1b]52;c;x\x07",
        "step": "5",
        "end_step": 10,
        "train_loss": [],
        "val_loss": 2.5,
        "eta_s": True,
    }
    said = {"reason": "\x1b[31mred\x1b[0m", "worker": "a\x07@host", "device": "cpu\n", "progress": json.dumps(progress)}
    leases._redis.hset(f"gptjobs:job:{JOB}", mapping=said)
    (job,) = leases.all()
    assert (job.reason, job.worker, job.used_device) == ("[31mred[0m", "a@host", "cpu")
    assert job.progress == {"stage": "]52;c;x", "end_step": 10, "val_loss": 2.5}


def test_a_step_without_the_end_it_goes_to_is_no_step(leases: LeaseStore) -> None:
    leases._redis.hset(f"gptjobs:job:{JOB}", "progress", '{"step": 5, "tokens": 100}')
    assert leases.get(JOB).to_dict()["step"] is None


@pytest.mark.parametrize("record", ["{}", "[]", "no json", '{"name": "\\u001b[2J"}'])
def test_a_worker_that_is_none_hides_no_other(leases: LeaseStore, record: str) -> None:
    here = Presence(
        name="a@host", host="host", version="1", queues=["cpu"], slots=["cpu"], busy=0, jobs=[], started_at=1.0
    )
    leases.announce(here)
    content = (
        {**json.loads(leases._redis.get("gptjobs:worker:a@host")), **json.loads(record)} if "name" in record else None
    )
    leases._redis.set("gptjobs:worker:b@host", json.dumps(content) if content else record)
    assert leases.workers() == [here]


def test_a_lost_holder_that_wrote_its_end_down_ended_its_job_whatever_was_asked_meanwhile(leases: LeaseStore) -> None:
    brought_to(leases, JobState.CANCELLING)
    assert leases.reap(leases.get(JOB), FINISHED, {}) is JobState.FINISHED
    assert leases.waiting() == leases.leased() == []
