"""Why a job is in its state: one clear answer for each situation, with what to type."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from gptjobs import checkpoint
from gptjobs.checkpoint import Attempt, Checkpoint, Losses
from gptjobs.errors import NotFound, RedisUnreachable
from gptjobs.explain import Explanation, Past, Queue, explain, submit_command
from gptjobs.job import Cause, Job, JobSpec, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.presence import Presence
from gptjobs.record import PastAttempt
from tests.unit.conftest import NOON, begin, commit, manifest, typed

SPEC = JobSpec(
    id="3f9a", kind="train", name="lm", overrides=typed(data="a b.md", batch_size=8), submitted_at=NOON, device="cpu"
)
RUNNING = {"step": 300, "end_step": 1000, "eta_s": 125.0, "stage": "training"}


def job(state: JobState, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "spec": SPEC, "state": state, "serial": 1, "token": 2, "beat": 3, "attempt": 0, "fruitless": {}, "priority": 5,
        "cause": None,
        "worker": None, "used_device": None, "reason": None, "progress": {},
    }  # fmt: skip
    return Job(**{**values, **changes})


def other(id: str, state: JobState, **changes: Any) -> Job:
    """Another job in the queue."""
    values = {"device": "cpu", "submitted_at": NOON, **changes}
    spec = JobSpec(id=id, kind="train", **values)
    return job(state, spec=spec, priority=spec.priority, progress=RUNNING)


def worker(name: str = "w@host", device: str = "cpu", busy: tuple[str, ...] = ()) -> Presence:
    return Presence(
        name=name, host="host", version="0.1.0", queues=[device, "any"], slots=[device], busy=len(busy),
        jobs=list(busy), started_at=NOON,
    )  # fmt: skip


def attempt(
    token: int, *, first: int, last: int, ended: Outcome | None = None, alerts: Sequence[dict[str, Any]] = ()
) -> PastAttempt:
    began = Attempt(
        token=token, start=None, start_step=first, start_token=None, worker="w@host", device="cpu", began_at=NOON
    )
    return PastAttempt(attempt=began, ended=ended, progress={"step": last}, alerts=alerts)


def saved(step: int, val_loss: float | None = 2.5) -> Checkpoint:
    return Checkpoint(
        name=f"checkpoints/3f9a/{step}.pt", manifest=manifest(step=step, losses=Losses(val_loss=val_loss))
    )


def told(job: Job, past: Past = Past(), queue: Queue = Queue()) -> tuple[str, Explanation]:  # noqa: B008  # frozen
    made = explain(job, past, queue, now=NOON + 65)
    return "\n".join(made.because), made


def test_a_job_waits_because_no_worker_is_there():
    text, made = told(job(JobState.QUEUED))
    assert text == "No worker is there to take it."
    assert made.next == ("gptjobs worker start",)


def test_a_job_waits_because_no_worker_offers_its_device():
    text, made = told(job(JobState.QUEUED), queue=Queue(workers=[worker("gpu@b", "cuda")]))
    assert text == "It asks for cpu, and no worker offers that. There is gpu@b (cuda)."
    assert made.next == (
        "gptjobs worker start --device cpu",
        "gptjobs cancel 3f9a && gptjobs submit train --data 'a b.md' --batch-size 8 --name lm",
    )


def test_a_job_of_several_devices_waits_because_no_worker_has_as_many():
    spec = replace(job(JobState.QUEUED).spec, overrides=typed(data="a.md", gpus=2, shard=True))
    waits = replace(job(JobState.QUEUED), spec=spec)
    text, made = told(waits, queue=Queue(workers=[worker()]))
    assert text == "It asks for 2 cpu devices at once, and no worker offers that. There is w@host (cpu)."
    assert made.next[0] == "gptjobs worker start --device cpu --slots 2"
    assert "--gpus" not in made.next[1] and "--shard" not in made.next[1]

    two = replace(worker(busy=("x",)), queues=["cpu", "any", "cpu.2", "any.2"], slots=["cpu", "cpu"])
    text, _ = told(waits, queue=Queue(workers=[two]))
    assert "It asks for 2 cpu devices at once, and no worker has as many free:\n  x on w@host" in text
    text, _ = told(waits, queue=Queue(workers=[replace(two, busy=0, jobs=[])]))
    assert "w@host is idle and could take it" in text


def test_a_job_waits_because_all_slots_are_busy_and_it_is_said_for_how_long():
    jobs = [other("aa", JobState.RUNNING), other("bb", JobState.RUNNING)]
    workers = [worker("w@a", busy=("aa",)), worker("w@b", busy=("bb",)), worker("gpu@b", "cuda")]
    text, made = told(job(JobState.QUEUED), queue=Queue(jobs=jobs, workers=workers))
    assert "All 2 slots that could take it are busy:" in text
    assert "  aa on w@a, 2m05s left" in text and "  bb on w@b, 2m05s left" in text
    assert "gpu@b" not in text and "ahead" not in text
    assert made.next[0] == "gptjobs wait 3f9a" and "worker start --device cpu" in made.next[1]


def test_jobs_of_higher_priority_or_submitted_before_are_ahead_of_a_job_that_waits():
    ahead = [
        other("a1", JobState.QUEUED, priority=9, submitted_at=NOON + 9),
        other("a2", JobState.QUEUED, submitted_at=NOON - 1),
        other("a3", JobState.QUEUED, device="any", submitted_at=NOON - 1),
    ]
    behind = [
        other("b1", JobState.QUEUED, priority=1, submitted_at=NOON - 9),
        other("b2", JobState.QUEUED, submitted_at=NOON + 1),
        other("b3", JobState.QUEUED, device="cuda", priority=9),
        other("b4", JobState.FINISHED, priority=9),
    ]
    text, _ = told(job(JobState.QUEUED), queue=Queue(jobs=[*ahead, *behind], workers=[worker(busy=("x",))]))
    assert "3 jobs of higher or the same priority are ahead of it." in text
    text, _ = told(job(JobState.QUEUED), queue=Queue(jobs=[ahead[0], *behind], workers=[worker(busy=("x",))]))
    assert "1 job of higher or the same priority is ahead of it." in text


def test_a_job_waits_though_a_worker_is_idle():
    text, _ = told(job(JobState.QUEUED), queue=Queue(workers=[worker(busy=("x",)), worker("idle@b")]))
    assert "idle@b is idle and could take it, and does so at once" in text and "within 10 s" in text


def test_an_idle_worker_takes_the_jobs_ahead_first():
    ahead = other("a1", JobState.QUEUED, priority=9)
    text, _ = told(job(JobState.QUEUED), queue=Queue(jobs=[ahead], workers=[worker("idle@b")]))
    assert "is ahead of it. idle@b is idle and takes them in that order" in " ".join(text.split())


def test_without_the_storage_root_nothing_is_said_of_checkpoints_that_may_be_there():
    text, made = told(job(JobState.CANCELLED, reason="cancelled"), Past(is_elsewhere=True))
    assert "Its checkpoints lie in the storage root, which is not here." in text
    assert made.next[-1] == "gptjobs submit resume --from 3f9a@last"


def test_a_job_of_a_lost_worker_waits_again_and_goes_on_from_its_last_checkpoint():
    past = Past(attempts=[attempt(1, first=0, last=310), attempt(2, first=200, last=420)], checkpoints=[saved(400)])
    waits = job(JobState.QUEUED, attempt=2, reason="lost w@host")
    text, _ = told(waits, past)
    assert "Attempt 1 on w@host went from step 0 to 310: its worker was lost." in text
    assert "It waits again after attempt 2: lost w@host." in text
    assert "Its last checkpoint is of step 400, validation loss 2.5000." in text


def test_a_job_that_crashes_without_a_new_checkpoint_says_when_it_gives_up():
    waits = job(JobState.QUEUED, attempt=2, fruitless={Cause.SIGNAL: 2}, cause=Cause.SIGNAL, reason="signal SIGSEGV")
    text, _ = told(waits)
    assert "after attempt 2: signal SIGSEGV" in text
    assert "2 attempts without a new checkpoint ended so (signal); after 5 it fails." in text
    assert "begins from scratch" in text


def test_a_job_that_runs_says_since_when_how_far_and_where_its_log_is():
    runs = job(JobState.RUNNING, attempt=1, worker="w@host", used_device="cpu", progress=RUNNING)
    past = Past(attempts=[attempt(2, first=0, last=300)], log="/root/logs/it.log")
    text, made = told(runs, past, Queue(workers=[worker()]))
    assert "Attempt 1 trains it on w@host, cpu, for 1m05s." in text
    assert "It is training: step 300 of 1000, 2m05s left." in text
    assert "/root/logs/it.log" in text
    assert made.next == ("gptjobs logs -f 3f9a", "gptjobs cancel 3f9a")


@pytest.mark.parametrize(("last_saved", "stands"), [(None, True), (200, True), (250, False)])
def test_an_alert_of_a_checkpoint_is_said_until_a_later_one_is_written(last_saved: int | None, stands: bool):
    runs = job(JobState.RUNNING, attempt=1, worker="w@host", used_device="cpu", progress=RUNNING)
    alerts = [{"name": "checkpoint_failed", "step": 200, "reason": "no space"}]
    checkpoints = [saved(last_saved)] if last_saved else []
    past = Past(attempts=[attempt(2, first=0, last=300, alerts=alerts)], checkpoints=checkpoints)
    text, _ = told(runs, past, Queue(workers=[worker()]))
    assert ("Alert at step 200: no space." in text) is stands


@pytest.mark.parametrize(("step", "stands"), [(200, True), (199, False)])
def test_an_outlier_is_said_for_a_while(step: int, stands: bool):
    runs = job(JobState.RUNNING, attempt=1, worker="w@host", used_device="cpu", progress=RUNNING)
    outlier = {"name": "outlier", "step": step, "reason": "outlier: loss 9.5"}
    text, _ = told(runs, Past(attempts=[attempt(2, first=0, last=300, alerts=[outlier])]), Queue(workers=[worker()]))
    assert (f"Alert at step {step}: outlier: loss 9.5." in text) is stands


@pytest.mark.parametrize(("now", "stands"), [(60.0, True), (None, True), (71.0, False)])
def test_a_slowdown_is_said_until_it_is_over(now: float | None, stands: bool):
    runs = job(JobState.RUNNING, attempt=1, worker="w@host", used_device="cpu", progress=RUNNING)
    spike = {"name": "spike", "step": 100, "reason": "the loss rose"}
    slow = {"name": "slowdown", "step": 200, "reason": "training is slow", "usual_tokens_per_s": 100.0}
    newest = attempt(2, first=0, last=300, alerts=[spike, slow])
    newest = replace(newest, progress={**newest.progress, "tokens_per_s": now})
    text, _ = told(runs, Past(attempts=[newest]), Queue(workers=[worker()]))
    assert ("Alert at step 200: training is slow." in text) is stands
    assert ("Alert at step 100: the loss rose." in text) is not stands


@pytest.mark.parametrize(
    ("others", "then", "next"),
    [([], "No other worker is there", "gptjobs worker start"), (["b"], "queues it again", "gptjobs explain 3f9a")],
)
def test_a_job_whose_worker_is_gone_says_who_takes_it_over(others: list[str], then: str, next: str):
    runs = job(JobState.RUNNING, attempt=1, worker="w@host", used_device="cpu", progress=RUNNING)
    text, made = told(runs, Past(checkpoints=[saved(200)]), Queue(workers=[worker(each) for each in others]))
    assert "w@host has not been heard of" in text and then in text and "step 200" in text
    assert made.next[0] == next


def test_a_job_that_is_cancelled_while_it_runs_writes_a_checkpoint_first():
    runs = job(JobState.CANCELLING, attempt=1, worker="w@host", used_device="cpu", progress=RUNNING)
    text, made = told(runs, queue=Queue(workers=[worker()]))
    assert "writes a checkpoint first" in text
    assert made.next == ("gptjobs wait 3f9a",)


def test_a_failed_job_says_its_cause_its_hint_the_end_of_its_log_and_how_to_go_on():
    failed = job(JobState.FAILED, attempt=2, worker="w@host", reason="RuntimeError: boom")
    crash = Outcome(state=JobState.QUEUED, reason="signal SIGSEGV")
    past = Past(
        attempts=[attempt(1, first=0, last=90, ended=crash), attempt(2, first=0, last=120)],
        checkpoints=[saved(100)], hint="less of it", log_end=["Traceback", "boom"],
    )  # fmt: skip
    text, made = told(failed, past)
    assert "Attempt 1 on w@host went from step 0 to 90: signal SIGSEGV." in text
    assert "It failed in attempt 2 on w@host: RuntimeError: boom." in text
    assert "Attempt 2 on" not in text
    assert "Hint: less of it." in text
    assert text.endswith("  Traceback\n  boom")
    assert made.next == ("gptjobs logs -n 50 3f9a", "gptjobs retry 3f9a")


def test_a_failed_job_without_a_checkpoint_can_be_submitted_again_as_it_was():
    _, made = told(job(JobState.FAILED, reason="no data"))
    assert made.next[-1] == "gptjobs submit train --data 'a b.md' --batch-size 8 --name lm --device cpu"


def test_a_diverged_job_goes_on_from_its_best_checkpoint_with_a_tenth_of_the_rate_said_once():
    command = "gptjobs submit resume --from 3f9a@best --learning-rate 6e-05"
    text, made = told(job(JobState.DIVERGED, reason="not finite"), Past(checkpoints=[saved(100)], hint=command))
    assert "It diverged: not finite." in text and "Hint" not in text
    assert made.next[-1] == command


def test_a_cancelled_job_can_go_on_from_its_last_checkpoint():
    text, made = told(job(JobState.CANCELLED, reason="cancelled"), Past(checkpoints=[saved(100)]))
    assert text.startswith("It was cancelled.\n")
    assert made.next == ("gptjobs retry 3f9a",)


@pytest.mark.parametrize(
    ("reason", "why"),
    [("finished", "It made all its steps."), ("no better validation loss than 2.1", "stopped early: no better")],
)
def test_a_finished_job_says_why_and_names_its_best_checkpoint(reason: str, why: str):
    text, made = told(job(JobState.FINISHED, reason=reason), Past(checkpoints=[saved(100, 2.25), saved(200, 2.75)]))
    assert why in text
    assert "Its best checkpoint is of step 100, validation loss 2.2500." in text
    assert made.next == ("gptjobs checkpoints list 3f9a", "gptjobs submit resume --from 3f9a@best --steps 1000")


def test_a_job_that_redis_forgot_can_be_taken_up_from_its_record():
    text, made = told(job(JobState.RUNNING), Past(checkpoints=[saved(100)]), Queue(missing=NotFound()))
    assert "Redis was flushed" in text and "step 100" in text
    assert made.next == ("gptjobs repair",)


def test_while_redis_is_away_nobody_is_told_to_submit_a_job_again():
    text, made = told(job(JobState.RUNNING), Past(checkpoints=[saved(100)]), Queue(missing=RedisUnreachable()))
    assert "only Redis knows" in text
    assert made.next[0] == "gptjobs doctor"
    assert not any("submit" in each for each in made.next)


def test_the_command_of_a_job_is_what_was_typed():
    overrides = typed(model="nano", data="t.md", learning_rate=1e-5, grow_positions=True, bias=False, tied=True)
    spec = JobSpec(id="x", kind="resume", overrides=overrides, parent="a/b.pt", submitted_at=NOON)
    assert submit_command(spec) == (
        "gptjobs submit resume --from a/b.pt --model nano --data t.md --learning-rate 1e-05 --grow-positions --no-bias"
    )


def test_best_is_the_checkpoint_of_the_lowest_validation_loss(layout: Layout):
    begin(layout, "first", 1)
    for step, loss in ((100, 2.5), (200, 2.25), (300, None)):
        commit(layout, "first", 1, step, losses=Losses(val_loss=loss))
    best = checkpoint.best(checkpoint.counting(layout, "first"))
    assert best is not None and best.manifest.step == 200
    assert checkpoint.best([]) is None
