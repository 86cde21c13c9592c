"""What became of trials, read from the storage root: their order, and which are left out of it."""

from gptjobs import progress, record, trials
from gptjobs.config import Plan, settle
from gptjobs.durable import make_folder, to_json, write
from gptjobs.job import JobSpec, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.progress import Evaluated, Progress
from gptjobs.sweep import Trial, grid, job_of_trial
from gptjobs.trials import PRUNED
from tests.unit.conftest import NOON, begin, typed
from tests.unit.test_sweep import sweep

SWEEP = sweep(dimensions=(grid("learning_rate=1e-5,1e-4,1e-3"),))


def give(
    layout: Layout, number: int, losses: dict[int, float], *, reason: str | None = "finished", context: int = 64,
    state: JobState = JobState.FINISHED, part: int = 0, steps: int = 90,
) -> str:  # fmt: skip
    """A trial's job on record, with these validation losses at its steps."""
    trials.write_sweep(layout, SWEEP)
    trial = Trial(number=number, params=SWEEP.point(number % 3))
    trials.write_trial(layout, SWEEP.id, trial)
    job = job_of_trial(SWEEP.id, number, part)
    record.write_spec(layout, JobSpec(id=job, kind="train", sweep=SWEEP.id, trial=number, submitted_at=NOON))
    values = typed(model="nano", data="t.md", steps=steps, batch_size=1, block_size=64, eval_interval=10)
    settled = settle(values)
    plan = Plan(job=job, kind="train", settled=settled, data_name="t", data_digest="d" * 64, parent=None)
    write(layout.config_file(job), to_json(plan.to_dict()))
    if not layout.attempt_file(job, 1).exists():
        begin(layout, job, 1)
    lines = [
        Progress(
            step=step, end_step=steps, tokens=64 * step, train_loss=1.0, val_loss=loss, eval_context=context,
            learning_rate=1e-3, grad_norm=1.0, tokens_per_s=1.0, eta_s=1.0,
        )
        for step, loss in losses.items()
    ]  # fmt: skip
    windows = [
        Evaluated(step=step, eval_context=context, eval_tokens=256, losses=[loss, loss + 1.0])
        for step, loss in losses.items()
    ]
    text = "".join(progress.encode(each, seconds=NOON) + "\n" for each in [*lines, *windows])
    make_folder(layout.attempts(job))
    layout.attempt_lines(job, 1).write_text(text)
    if reason is not None:
        record.write_outcome(layout, job, Outcome(state=state, reason=reason), 1)
    return job


def test_the_best_loss_at_the_end_is_first(layout: Layout) -> None:
    give(layout, 0, {0: 3.0, 40: 0.5, 90: 2.0})
    give(layout, 1, {0: 3.0, 90: 1.0})
    give(layout, 2, {0: 3.0, 90: 1.5})
    ranking = trials.rank(trials.read(layout, SWEEP.id))
    assert [each.trial.number for each in ranking.ranked] == [1, 2, 0]
    assert not ranking.left_out


def test_what_did_not_train_on_as_many_tokens_is_not_ranked(layout: Layout) -> None:
    give(layout, 0, {90: 2.0})
    give(layout, 1, {40: 1.0}, reason=PRUNED)
    give(layout, 2, {40: 1.0}, reason="target")
    give(layout, 3, {80: 1.0}, reason="out of memory", state=JobState.FAILED)
    give(layout, 4, {80: 1.0}, reason=None)
    ranking = trials.rank(trials.read(layout, SWEEP.id))
    assert [each.trial.number for each in ranking.ranked] == [0]
    assert [why for _, why in ranking.left_out] == [
        "pruned", "ended after 2,560 of 5,760 tokens", "out of memory", "going on"
    ]  # fmt: skip


def test_trials_that_were_evaluated_at_different_contexts_are_not_ranked(layout: Layout) -> None:
    give(layout, 0, {90: 2.0}, context=64)
    give(layout, 1, {90: 1.0}, context=128)
    ranking = trials.rank(trials.read(layout, SWEEP.id))
    assert not ranking.ranked
    assert {why for _, why in ranking.left_out} == {"evaluated at different contexts: 64, 128"}


def test_a_trial_that_went_on_after_it_was_stopped_has_the_evaluations_of_both_jobs(layout: Layout) -> None:
    first = give(layout, 0, {0: 3.0, 10: 2.5}, reason=PRUNED)
    second = give(layout, 0, {12: 2.5, 20: 2.0, 90: 1.0}, part=1)
    (tried,) = trials.read(layout, SWEEP.id)
    assert (tried.jobs, tried.is_whole) == ([first, second], True)
    assert [each.step for each in tried.evaluations] == [0, 10, 12, 20, 90]
    assert tried.by_unit() == {1: 2.5, 2: 2.0, 9: 1.0}


def test_a_part_that_goes_on_is_not_judged_again_by_the_evaluation_it_begins_with(layout: Layout) -> None:
    give(layout, 0, {0: 3.0, 10: 2.5}, reason=PRUNED)
    judged = []
    for losses in ({12: 2.4}, {12: 2.4, 20: 2.3}, {12: 2.4, 20: 2.3, 21: 2.2}):
        give(layout, 0, losses, part=1, reason=None)
        judged.append(trials.read(layout, SWEEP.id)[0].is_at_a_new_unit)
    assert judged == [False, True, False]


def test_a_unit_has_the_first_loss_at_or_after_it(layout: Layout) -> None:
    give(layout, 0, {0: 3.0, 15: 2.5, 20: 2.0, 29: 1.9})
    (tried,) = trials.read(layout, SWEEP.id)
    assert tried.by_unit() == {1: 2.5, 2: 2.0}


def test_the_number_of_a_trial_is_taken_by_whoever_writes_it_first(layout: Layout) -> None:
    trials.write_sweep(layout, SWEEP)
    assert trials.write_trial(layout, SWEEP.id, Trial(number=0, params={"learning_rate": 1e-5}))
    assert not trials.write_trial(layout, SWEEP.id, Trial(number=0, params={"learning_rate": 1e-4}))
    (tried,) = trials.read(layout, SWEEP.id)
    assert tried.trial.params == {"learning_rate": 1e-5} and tried.goes_on and not tried.jobs


def test_the_windows_of_an_evaluation_are_read_from_the_attempts(layout: Layout) -> None:
    job = give(layout, 0, {0: 3.0, 90: 2.0})
    assert trials.windows(layout, job, 90) == [2.0, 3.0]
    assert trials.windows(layout, job, 80) is None


def test_a_sweep_that_cannot_be_read_hides_no_other(layout: Layout) -> None:
    trials.write_sweep(layout, SWEEP)
    broken = layout.sweep_file("broken")
    broken.parent.mkdir()
    broken.write_text("{")
    assert trials.sweeps(layout) == [SWEEP]
