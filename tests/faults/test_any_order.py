"""Any order of what users, workers, reapers and faults do to one job: a state machine over a real server and a real
storage root, with the code of workers, but without their processes and threads."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as check

from gptjobs import broker, checkpoint, control, durable, record, repair
from gptjobs.checkpoint import Checkpoint, Manifest
from gptjobs.errors import NotFound
from gptjobs.job import TERMINAL, Job, JobSpec, JobState, Outcome
from gptjobs.layout import Layout, checkpoint_name
from gptjobs.leases import LeaseStore
from worker.attempt import Attempt
from worker.host import Host
from worker.lease import HeldLease
from worker.rescue import Rescue
from worker.supervisor import Drain
from worker.tasks import Station

FROZEN = Path(__file__).parents[1] / "formats" / "v1" / "manifest.json"
JOB = "3f9a00000001"
STEPS = 50
HOST = Host(worker="reaper@host", slots=("cpu",))
OFTEN = ("claim", "save", "renew", "lose")
AT_TIMES = ("freeze", "thaw", "stop", "look", "reap", "unpause")
RARELY = ("kill", "pause", "cancel", "finish", "hold", "flush", "flush_and_repair", "repair", "claim_late")
HAPPENS = (*6 * OFTEN, *2 * AT_TIMES, *RARELY)


class UnthreadedLease(HeldLease):
    """Renewed when the machine says so."""

    def _stop_renewing(self) -> None:
        self._stopped.set()


@dataclass
class Holder:
    """A worker with a lease, and the trainer that it supervises. One that is frozen renews nothing; the trainer is
    killed once the worker learns that it lost its lease."""

    held: HeldLease
    attempt: Attempt
    step: int
    is_frozen: bool = False
    is_over: bool = False

    @property
    def trains(self) -> bool:
        return not (self.is_over or self.held.lost)


class AnyOrder(RuleBasedStateMachine):
    url: str
    app: broker.App
    folder: Callable[[], Path]

    @initialize()
    def submit(self) -> None:
        self.layout = Layout(self.folder())
        self.layout.make()
        self.store = LeaseStore(self.url)
        self.store._redis.flushall()
        self.all: list[Holder] = []
        self.seen: Job | None = None
        self.tokens: list[int] = []
        self.ended: JobState | None = None
        self.newest_step = 0
        control.submit(self.store, self.layout, self.app, JobSpec(id=JOB, kind="train", submitted_at=1.0))

    def teardown(self) -> None:
        if hasattr(self, "layout"):
            shutil.rmtree(self.layout.root)

    def job(self) -> Job | None:
        with suppress(NotFound):
            return self.store.get(JOB)
        return None

    @rule(number=st.integers(0, len(HAPPENS) - 1), which=st.integers(0, 2))
    def happens(self, number: int, which: int) -> None:
        """To the newest holder, or an older one; or to the job."""
        what = HAPPENS[number]
        if what in ("save", "renew", "freeze", "thaw", "kill", "stop", "finish", "hold"):
            if which < len(self.all):
                getattr(self, what)(self.all[-1 - which])
        else:
            getattr(self, what)()

    def claim(self, late: int = 0) -> None:
        """As a worker answers a doorbell, of the newest serial or an older one."""
        found = self.job()
        if found is None:
            return
        floor, nonce = checkpoint.latest_token(self.layout, JOB), f"n{len(self.tokens)}"
        lease = self.store.claim(JOB, found.serial - late, floor=floor, nonce=nonce, worker="a@host", device="cpu")
        assert (lease is not None) == (found.state is JobState.QUEUED and not late)
        if lease is None:
            return
        assert lease.token > max(self.tokens, default=0), "tokens only grow"
        self.tokens.append(lease.token)
        held = UnthreadedLease(self.store, lease, found.spec, self.layout, "a@host", "cpu", lambda *_: None)
        made = Attempt(self.layout, found, held, "a@host", "cpu", Drain())
        holder = Holder(held=held, attempt=made, step=0)
        self.all.append(holder)
        if not self.refuses(holder):
            start = checkpoint.start_of_next_attempt(self.layout, JOB, None)
            checkpoint.begin_attempt(self.layout, JOB, lease.token, start, worker="a@host", device="cpu")
            holder.step = start.manifest.step if start else 0

    def claim_late(self) -> None:
        self.claim(late=1)

    def refuses(self, holder: Holder) -> bool:
        """Whether the job ended before, or is to: then no attempt begins."""
        outcome = record.read_outcome(self.layout, JOB)
        asked = record.with_requests(self.layout, JOB, JobState.QUEUED)
        if outcome is None and asked is JobState.QUEUED:
            return False
        self.end(holder, outcome or Outcome(state=asked, reason=asked.value))
        return True

    def end(self, holder: Holder, outcome: Outcome) -> None:
        """As an attempt ends: in the root, if it counts, then in Redis."""
        if holder.attempt._is_the_newest:
            holder.attempt._write_down(None, outcome)
        holder.held.finish(outcome, fruitless={}, draining=Drain())
        holder.is_over = True

    def save(self, holder: Holder) -> None:
        """A trainer writes a checkpoint, also one whose worker is frozen, or was fenced and does not know it yet."""
        if not holder.trains:
            return
        holder.step += STEPS
        folder = self.layout.job_checkpoints(JOB)
        folder.mkdir(exist_ok=True)
        path = folder / checkpoint_name("text", holder.step, holder.held.lease.token)
        path.write_bytes(b"weights")
        manifest = replace(
            Manifest.from_dict(json.loads(FROZEN.read_text())),
            job=JOB,
            token=holder.held.lease.token,
            step=holder.step,
            size=7,
            sha256=hashlib.sha256(b"weights").hexdigest(),
        )
        durable.create(checkpoint.manifest_path(path), durable.to_json(manifest.to_dict()))

    def renew(self, holder: Holder) -> None:
        if holder.trains and not holder.is_frozen:
            holder.held._renew()
            assert holder.held.lost or holder.held.lease.token == self.tokens[-1], "one live holder"

    def freeze(self, holder: Holder) -> None:
        holder.is_frozen = True

    def thaw(self, holder: Holder) -> None:
        holder.is_frozen = False

    def kill(self, holder: Holder) -> None:
        holder.is_over = True

    def stop(self, holder: Holder, state: JobState = JobState.QUEUED) -> None:
        """A drain or a crash, or an end for good."""
        if holder.trains and not holder.is_frozen:
            self.end(holder, Outcome(state=state, reason=state.value))

    def finish(self, holder: Holder) -> None:
        self.stop(holder, JobState.FINISHED)

    def hold(self, holder: Holder) -> None:
        if holder.trains and not holder.is_frozen:
            record.ask(self.layout, JOB, "pause", "no space")
        self.stop(holder, JobState.PAUSED)

    def look(self) -> None:
        self.seen = self.job()

    def reap(self) -> None:
        """By what a reaper saw before."""
        if self.seen is None:
            return
        before = self.job()
        Rescue(Station(host=HOST, layout=self.layout, store=self.store, app=self.app))._reap(self.seen)
        after = self.job()
        if before != after:
            assert before is not None and (before.token, before.beat) == (self.seen.token, self.seen.beat)

    def lose(self) -> None:
        """A reaper saw no beat for a TTL: of a worker that is gone or frozen."""
        self.look()
        self.reap()

    def cancel(self) -> None:
        control.cancel(self.store, self.layout, self.job() or record.read_job(self.layout, JOB))

    def pause(self) -> None:
        control.pause(self.store, self.layout, self.job() or record.read_job(self.layout, JOB))

    def unpause(self) -> None:
        with suppress(NotFound):
            control.unpause(self.store, self.layout, self.app, record.read_job(self.layout, JOB))

    def flush(self) -> None:
        self.store._redis.flushall()

    def flush_and_repair(self) -> None:
        self.flush()
        self.repair()

    def repair(self) -> None:
        """Put the job back, after every worker that is awake had its beat."""
        jobs = repair.missing(self.store, self.layout, pytest.fail)
        for holder in self.all:
            self.renew(holder)
        begun = [each for each in jobs if each.state.has_trainer and self.job() is None]
        released = [repair.released(each) for each in begun]
        repair.put_back(self.store, self.layout, self.app, [*released, *(each for each in jobs if each not in begun)])
        assert self.job() is not None

    @invariant()
    def terminal_is_final(self) -> None:
        job = self.job() if hasattr(self, "layout") else None
        if job is None:
            return
        assert self.ended in (None, job.state)
        self.ended = job.state if job.state in TERMINAL else None

    @invariant()
    def the_newest_checkpoint_that_counts_never_goes_back(self) -> None:
        if hasattr(self, "layout"):
            counting: list[Checkpoint] = checkpoint.counting(self.layout, JOB)
            newest = counting[-1].manifest.step if counting else 0
            assert newest >= self.newest_step
            self.newest_step = newest


def test_no_order_of_events_gives_two_holders_revives_a_job_or_takes_its_checkpoints_back(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power is cut here
    monkeypatch.setattr("worker.lease.BEAT_S", 0.0)
    monkeypatch.setattr("worker.lease.OFFLINE_LIMIT_S", 2.0)
    count, app = iter(range(10**9)), broker.connect(redis_url)
    members = {"url": redis_url, "app": app, "folder": lambda self: tmp_path / str(next(count))}
    machine = type("Machine", (AnyOrder,), members)
    unhurried = settings(
        max_examples=80, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
    )
    check(machine, settings=unhurried)
