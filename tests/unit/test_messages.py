"""What people are told, word by word."""

import time

import pytest

from gptjobs import record
from gptjobs.job import Cause, JobSpec, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.notify import Kind, Message
from gptjobs.progress import FALL, PLATEAU, SPIKE, Alert, Progress, encode
from tests.unit.conftest import NOON, begin, commit
from tests.unit.test_trials import SWEEP, give
from worker import messages
from worker.messages import LONGEST
from worker.messenger import Messenger
from worker.news import SPIKES_APART_S, News

SPEC = JobSpec(id="3f9a01c2d4e5", kind="train", name="steady", submitted_at=NOON)
LONG_AGO_S = 2 * 3600 + 5 * 60


def trained(layout: Layout, losses: dict[int, float | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A job on record whose attempt began so long ago."""
    record.write_spec(layout, SPEC)
    with monkeypatch.context() as then:
        began = time.time() - LONG_AGO_S
        then.setattr(time, "time", lambda: began)
        begin(layout, SPEC.id, 1)
    lines = [step(number, loss) for number, loss in losses.items()]
    text = "".join(encode(each, seconds=NOON) + "\n" for each in lines)
    layout.attempt_lines(SPEC.id, 1).write_text(text)


def step(number: int, val_loss: float | None = None) -> Progress:
    return Progress(
        step=number, end_step=2000, tokens=number, train_loss=3.1, val_loss=val_loss,
        eval_context=None if val_loss is None else 128, learning_rate=1e-3, grad_norm=1.0, tokens_per_s=1.0, eta_s=1.0,
    )  # fmt: skip


def test_a_finished_job_says_its_loss_its_best_and_how_long_it_took(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(layout, {0: 3.9, 1500: 3.2003, 2000: 3.214}, monkeypatch)
    made = messages.of_end(layout, SPEC, Outcome(state=JobState.FINISHED, reason="finished"))
    assert made == Message(
        title="steady: finished at step 2000, val loss 3.2140 (best 3.2003 at step 1500)",
        body="val loss 3.9000 → 3.2140, context 128\n2h05m in 1 attempt, worker@host, cpu\ngptjobs show 3f9a01c2d4e5",
        kind=Kind.SUCCESS,
    )


def test_a_job_that_stopped_early_says_why_and_one_that_is_at_its_best_says_so(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(layout, {0: 3.9, 1500: 3.2}, monkeypatch)
    reason = "validation loss 3.2000 reached the target"
    made = messages.of_end(layout, SPEC, Outcome(state=JobState.FINISHED, reason=reason))
    assert made.title == "steady: finished at step 1500, val loss 3.2000 (its best)"
    assert made.body.splitlines()[0] == reason


@pytest.mark.parametrize(
    ("state", "commands"),
    [
        (JobState.FAILED, ["gptjobs explain 3f9a01c2d4e5", "gptjobs retry 3f9a01c2d4e5"]),
        (JobState.DIVERGED, ["gptjobs diagnose 3f9a01c2d4e5"]),
    ],
)
def test_a_job_that_went_wrong_says_why_and_what_to_type(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, state: JobState, commands: list[str]
) -> None:
    trained(layout, {300: None}, monkeypatch)
    made = messages.of_end(layout, SPEC, Outcome(state=state, reason="what\n\x1b[31mhappened", hint="--batch-size 8"))
    assert (made.title, made.kind) == (f"steady: {state} at step 300", Kind.FAILURE)
    assert made.body.splitlines() == [
        "what[31mhappened", "hint: --batch-size 8", "2h05m in 1 attempt, worker@host, cpu", *commands
    ]  # fmt: skip


def test_a_job_of_which_nothing_is_on_record_is_told_all_the_same(layout: Layout) -> None:
    made = messages.of_end(layout, SPEC, Outcome(state=JobState.FAILED, reason="x" * 9999))
    assert made.title == "steady: failed" and len(made.body) < LONGEST + 100
    assert len(made.body.splitlines()) == 3


def test_a_job_that_goes_back_says_to_where(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(layout, {0: 3.9, 301: None}, monkeypatch)
    commit(layout, SPEC.id, 1, 200)
    spiked = Outcome(state=JobState.QUEUED, reason="spike: the loss rose", cause=Cause.SPIKE)
    made = messages.of_rollback(layout, SPEC, spiked)
    assert (made.title, made.kind) == ("steady: spike at step 301, going back", Kind.WARNING)
    assert "It goes back to step 200 and on without what it had read there." in made.body


def test_a_job_without_space_says_how_to_let_it_go_on(layout: Layout) -> None:
    reason = "no space; free space in the storage root, then gptjobs unpause steady"
    made = messages.of_pause(layout, SPEC, Outcome(state=JobState.PAUSED, reason=reason, cause=Cause.NO_SPACE))
    assert (made.title, made.body, made.kind) == ("steady: paused, no space", reason, Kind.WARNING)


def test_a_sweep_says_its_best_trials_and_how_many_failed(layout: Layout) -> None:
    for number, loss in enumerate((2.0, 1.0, 1.5)):
        give(layout, number, {0: 3.0, 90: loss})
    give(layout, 3, {0: 3.0}, state=JobState.FAILED, reason="out of memory")
    made = messages.of_sweep(layout, SWEEP)
    assert made.title == f"{SWEEP.called}: sweep finished, best val loss 1.0000, learning_rate=0.0001"
    lines = made.body.splitlines()
    assert lines[:4] == [
        "4 trials: 3 finished, 1 failed",
        "1. trial 1  1.0000  learning_rate=0.0001",
        "2. trial 2  1.5000  learning_rate=0.001",
        "3. trial 0  2.0000  learning_rate=1e-05",
    ]
    assert lines[5:] == [
        f"gptjobs sweep show {SWEEP.called}", f"gptjobs submit resume --from {SWEEP.called}@best --steps 2000"
    ]  # fmt: skip
    assert made.kind is Kind.WARNING


def test_a_sweep_without_a_whole_trial_is_a_failure(layout: Layout) -> None:
    give(layout, 0, {0: 3.0}, state=JobState.FAILED, reason="out of memory")
    made = messages.of_sweep(layout, SWEEP)
    assert made.title == f"{SWEEP.called}: sweep finished, no trial made all its steps"
    assert made.kind is Kind.FAILURE and "resume" not in made.body


class Told(Messenger):
    """Keeps what was to be sent."""

    def __init__(self) -> None:
        super().__init__(["ntfy://everywhere"])
        self.titles: list[str] = []

    def tell(self, addresses, make, about, log=None):  # type: ignore[no-untyped-def]
        self.titles.append(make().title.removeprefix("steady: "))


def alert(name: str, step: int = 100, loss: float | None = None) -> Alert:
    return Alert(name=name, step=step, reason="look", loss=loss)


def test_a_spike_is_told_once_the_job_trains_on_through_it_and_now_and_then_at_most(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    told = Told()
    news = News(told, layout, SPEC)
    news.note(alert(SPIKE))
    news.note(step(100))
    assert told.titles == [], "its end may come yet"
    news.note(step(110))
    news.note(step(120))
    assert told.titles == ["spike at step 100"]
    now += SPIKES_APART_S
    news.note(alert(FALL, 200))
    news.note(step(210))
    assert len(told.titles) == 1, "too soon"
    now += 1
    news.note(alert(FALL, 300))
    news.note(step(310))
    assert told.titles[1:] == ["fall of the loss at step 300"]


def test_of_what_is_seen_beside_the_trainer_a_plateau_is_told(layout: Layout) -> None:
    told = Told()
    news = News(told, layout, SPEC)
    for each in (alert("slowdown"), alert("memory_growth"), alert(PLATEAU, loss=3.21)):
        news.tell_alert(each)
    assert told.titles == ["plateau at step 100, val loss 3.2100"]


@pytest.mark.parametrize(
    ("outcome", "titles"),
    [
        (Outcome(state=JobState.FINISHED, reason="finished"), ["finished"]),
        (Outcome(state=JobState.FAILED, reason="x"), ["failed"]),
        (Outcome(state=JobState.DIVERGED, reason="x"), ["diverged"]),
        (Outcome(state=JobState.PAUSED, reason="x", cause=Cause.NO_SPACE), ["paused, no space"]),
        (Outcome(state=JobState.QUEUED, reason="x", cause=Cause.SPIKE), ["spike, going back"]),
        (Outcome(state=JobState.CANCELLED, reason="cancelled"), []),
        (Outcome(state=JobState.PAUSED, reason="paused"), []),
        (Outcome(state=JobState.QUEUED, reason="x", cause=Cause.LOST_HOST), []),
        (Outcome(state=JobState.QUEUED, reason="x", cause=Cause.OUT_OF_MEMORY), []),
    ],
)
def test_an_end_is_news_where_a_job_ended_or_somebody_must_act(
    layout: Layout, outcome: Outcome, titles: list[str]
) -> None:
    told = Told()
    News(told, layout, SPEC).tell_end(outcome)
    assert told.titles == titles
    trial = JobSpec(id="3f9a01c2d4e6", kind="train", sweep="5a0b1c2d3e4f", trial=1, submitted_at=NOON)
    News(told, layout, trial).tell_end(outcome)
    assert told.titles == titles, "a trial tells nothing"
