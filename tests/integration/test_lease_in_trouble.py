"""The lease in trouble: a flush, a server that is away or full, and any order of events among many workers."""

from contextlib import suppress
from threading import Event

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from gptjobs import checkpoint, control, record
from gptjobs.job import TERMINAL, WAYS, Job, JobSpec, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.leases import Fenced, Lease, LeaseStore, Unreachable
from gptjobs.local import _free_port
from worker.lease import HeldLease

JOB = "3f9a00000001"
SPEC = JobSpec(id=JOB, kind="train", submitted_at=1.0)


@pytest.fixture
def leases(redis_url: str, layout: Layout) -> LeaseStore:
    """The lease's connection, to a server with one queued job, which is on record."""
    made = LeaseStore(redis_url)
    record.write_spec(layout, SPEC)
    assert made.submit(SPEC)
    return made


def held(leases: LeaseStore, layout: Layout) -> HeldLease:
    """A lease as a worker holds it, its attempt in the root; renewed when a test says so."""
    lease = leases.claim(JOB, 1, floor=4, nonce="n1", worker="a@host", device="cpu")
    assert lease is not None
    checkpoint.begin_attempt(layout, JOB, lease.token, None, worker="a@host", device="cpu")
    return HeldLease(leases, lease, SPEC, layout, "a@host", "cpu", lambda progress: None)


def test_the_newest_attempt_in_the_root_restores_a_flushed_record(leases: LeaseStore, layout: Layout) -> None:
    lease = held(leases, layout)
    leases._redis.flushall()
    lease._renew()
    lease._renew()
    assert not lease.lost
    assert (leases.get(JOB).token, leases.get(JOB).beat) == (5, 1)


def test_an_older_attempt_in_the_root_never_restores_a_flushed_record(leases: LeaseStore, layout: Layout) -> None:
    lease = held(leases, layout)
    layout.attempt_file(JOB, 6).write_bytes(layout.attempt_file(JOB, 5).read_bytes())
    leases._redis.flushall()
    lease._renew()
    assert lease.lost
    assert leases.all() == []


def test_a_cancel_request_outlives_a_flush(leases: LeaseStore, layout: Layout) -> None:
    lease = held(leases, layout)
    record.ask(layout, JOB, "cancel")
    assert leases.ask("cancel", JOB, "cancelled") is JobState.CANCELLING
    leases._redis.flushall()
    lease._renew()
    lease._renew()
    assert lease.is_asked_to_stop


def test_an_attempt_that_ends_after_a_flush_says_so_itself(leases: LeaseStore, layout: Layout) -> None:
    lease, finished = held(leases, layout), Outcome(state=JobState.FINISHED, reason="finished")
    lease._thread.start()
    record.write_outcome(layout, JOB, finished, lease.lease.token)
    leases._redis.flushall()
    assert lease.finish(finished, fruitless={}, draining=Event()) is JobState.FINISHED
    assert leases.get(JOB).state is JobState.FINISHED


def test_an_attempt_that_was_away_does_not_finish_a_job_that_was_cancelled_meanwhile(
    leases: LeaseStore, layout: Layout
) -> None:
    lease = held(leases, layout)
    lease._renew()
    assert leases.reap(leases.get(JOB), Outcome(state=JobState.QUEUED, reason="lost"), {}) is JobState.QUEUED
    lease._thread.start()
    lease._stop_renewing()
    control.cancel(leases, layout, leases.get(JOB))
    leases._redis.flushall()
    assert lease.finish(Outcome(state=JobState.FINISHED, reason="finished"), fruitless={}, draining=Event()) is None
    assert leases.all() == []


def test_renewing_goes_on_where_the_server_went_away_while_a_record_was_put_back(
    leases: LeaseStore, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = held(leases, layout)
    leases._redis.flushall()
    with monkeypatch.context() as away:
        away.setattr(leases, "put_back", LeaseStore(f"redis://127.0.0.1:{_free_port()}").put_back)
        lease._renew()
    lease._renew()
    assert not lease.lost
    assert [each.spec.id for each in leases.leased()] == [JOB]


def test_a_server_that_is_away_or_full_is_told_apart_from_a_lost_lease(leases: LeaseStore) -> None:
    lease = leases.claim(JOB, 1, floor=0, nonce="n1", worker="a@host", device="cpu")
    assert lease is not None
    away = LeaseStore(f"redis://127.0.0.1:{_free_port()}/0")
    with pytest.raises(Unreachable):
        away.renew(lease, None)
    leases._redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unreachable):
            leases.renew(lease, None)
    finally:
        leases._redis.config_set("maxmemory", 0)
    assert leases.renew(lease, None) == (JobState.RUNNING, False)


class Interleavings(RuleBasedStateMachine):
    """Any order of what workers, reapers and users do, frozen ones among them: each keeps what it once saw."""

    leases: LeaseStore
    granted = Bundle("granted")
    seen = Bundle("seen")

    @initialize()
    def submit(self) -> None:
        self.leases._redis.flushall()
        self.leases.submit(SPEC)
        self.token = self.serial = self.count = 0
        self.ended: JobState | None = None
        self.tokens: list[int] = []

    @rule(target=granted, worker=st.sampled_from("abc"), late=st.integers(0, 1), floor=st.integers(0, 9))
    def claim(self, worker: str, late: int, floor: int) -> object:
        before, self.count = self.leases.get(JOB), self.count + 1
        lease = self.leases.claim(
            JOB, before.serial - late, floor=floor, nonce=f"n{self.count}", worker=worker, device="cpu"
        )
        assert (lease is not None) == (before.state is JobState.QUEUED and not late)
        if lease is None:
            return multiple()
        assert lease.token > max(self.tokens, default=floor)
        self.tokens.append(lease.token)
        return lease

    @rule(target=seen)
    def look(self) -> Job:
        return self.leases.get(JOB)

    @rule(lease=granted)
    def renew(self, lease: Lease) -> None:
        with suppress(Fenced):
            assert self.leases.renew(lease, {"by": lease.nonce})[0].has_trainer

    @rule(lease=granted, state=st.sampled_from((JobState.QUEUED, JobState.PAUSED, *sorted(TERMINAL))))
    def finish(self, lease: Lease, state: JobState) -> None:
        with suppress(Fenced):
            self.leases.finish(lease, Outcome(state=state, reason=""), fruitless={}, progress=None)

    @rule(job=seen)
    def reap(self, job: Job) -> None:
        moved = (job.token, job.beat) != (self.leases.get(JOB).token, self.leases.get(JOB).beat)
        assert self.leases.reap(job, Outcome(state=JobState.QUEUED, reason="lost"), {}) is None or not moved

    @rule(way=st.sampled_from(("cancel", "pause", "unpause")))
    def ask(self, way: str) -> None:
        before = self.leases.get(JOB).state
        assert self.leases.ask(way, JOB, way) is WAYS[way].get(before, before)

    @rule(priority=st.integers(0, 9))
    def prioritize(self, priority: int) -> None:
        self.leases.prioritize(JOB, priority)
        assert self.leases.get(JOB).priority == priority

    @rule(leases=st.lists(granted, min_size=1, unique_by=lambda each: each.nonce))
    def everybody_renews(self, leases: list[Lease]) -> None:
        holders = []
        for lease in leases:
            with suppress(Fenced):
                self.leases.renew(lease, None)
                holders.append(lease.token)
        assert holders in ([], [max(self.tokens)])

    @invariant()
    def the_record_agrees_with_itself(self) -> None:
        job = self.leases.get(JOB)
        assert job.token >= self.token and job.serial >= self.serial
        self.token, self.serial = job.token, job.serial
        assert self.ended in (None, job.state), "terminal is final"
        self.ended = job.state if job.state.is_terminal else None
        assert bool(self.leases.waiting()) == bool(self.leases._redis.smembers("gptjobs:waiting"))
        assert bool(self.leases.waiting()) == (job.state is JobState.QUEUED)
        assert bool(self.leases.leased()) == job.state.has_trainer


def test_no_order_of_events_gives_two_holders_or_takes_a_token_back(leases: LeaseStore) -> None:
    machine = type("Machine", (Interleavings,), {"leases": leases})
    unhurried = settings(
        max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=unhurried)
