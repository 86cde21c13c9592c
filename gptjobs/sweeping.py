"""What users and workers do to a sweep: put it into the queue, stop it, let it go on, and its trials too."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from gptjobs import checkpoint, control, record, trials
from gptjobs.broker import App
from gptjobs.config import Given
from gptjobs.errors import NotFound, RedisRefused, Refused
from gptjobs.job import JobSpec
from gptjobs.layout import Layout
from gptjobs.store import Store
from gptjobs.sweep import Sweep
from gptjobs.trials import FINISHED, GOING_ON, STOPPED, Tried

STOP = "stop"


def submit(store: Store, layout: Layout, sweep: Sweep, addresses: Sequence[str] = ()) -> None:
    """Idle workers see to it from now on."""
    is_first = False
    if layout.is_there:
        record.write_addresses(layout, sweep.id, addresses)
        is_first = trials.write_sweep(layout, sweep)
    try:
        if addresses:
            store.keep_addresses(sweep.id, addresses)
        store.begin_sweep(sweep)
    except RedisRefused:
        if is_first:
            trials.forget(layout, sweep)  # or `repair` would begin it
        raise


def is_stopped(layout: Layout, sweep: Sweep) -> bool:
    return record.asked(layout, sweep.id, STOP) is not None


def state(layout: Layout, sweep: Sweep) -> str:
    """GOING_ON, STOPPED or FINISHED."""
    if layout.summary_file(sweep.id).is_file():
        return FINISHED
    return STOPPED if is_stopped(layout, sweep) else GOING_ON


def overview(layout: Layout, sweep: Sweep, tried: Sequence[Tried]) -> dict[str, Any]:
    """The sweep in a line, as `sweep list --json` shows it; `tried` are its trials."""
    ranked = trials.rank(tried).ranked
    return {
        "id": sweep.id,
        "name": sweep.name,
        "state": state(layout, sweep),
        "trials": sweep.trials,
        "ended": sum(not each.goes_on for each in tried),
        "best": ranked[0].last.val_loss if ranked and ranked[0].last else None,
        "searched": [*sweep.changes, *map(str, sweep.dimensions)],
        "from": sweep.parent,
        "submitted_at": sweep.submitted_at,
    }


def stop(store: Store, layout: Layout, sweep: Sweep) -> list[str]:
    """No more trials; those in work pause, with a checkpoint. Returns their jobs."""
    record.ask(layout, sweep.id, STOP)
    store.end_sweep(sweep.id)
    paused = [each.job for each in trials.read(layout, sweep.id) if each.jobs and each.goes_on]
    for job in paused:
        with suppress(NotFound):
            control.pause(store, layout, store.get(job))
    return paused


def start(store: Store, layout: Layout, app: App, sweep: Sweep) -> list[str]:
    """A stopped sweep goes on; returns the jobs that were paused."""
    record.take_back(layout, sweep.id, STOP)
    store.begin_sweep(sweep)
    paused = [each.job for each in trials.read(layout, sweep.id) if each.jobs and each.goes_on]
    for job in paused:
        control.unpause(store, layout, app, store.get(job))
    return paused


def promote(store: Store, layout: Layout, app: App, sweep: Sweep, number: int) -> str:
    """Let a trial that a pruner stopped go on from its checkpoint, to its end; returns the job that does."""
    tried = trials.read(layout, sweep.id)
    if number >= len(tried):
        raise NotFound(f"sweep {sweep.called} has no trial {number}", hint=f"gptjobs sweep show {sweep.called}")
    if not tried[number].is_pruned:
        raise Refused(
            f"trial {number} of {sweep.called} was not stopped by a pruner: {tried[number].state}",
            hint=f"gptjobs sweep show {sweep.called}",
        )
    spec = replace(next_part(layout, sweep, tried[number]), to_the_end=True)
    layout.summary_file(sweep.id).unlink(missing_ok=True)  # it is written anew when this part has ended
    control.submit(store, layout, app, spec)
    store.begin_sweep(sweep)
    return spec.id


def next_part(layout: Layout, sweep: Sweep, tried: Tried) -> JobSpec:
    """The rest of a trial that was stopped, from its last checkpoint. Raises NotFound where it has none."""
    plan, last = record.read_plan(layout, tried.job), checkpoint.start_of_next_attempt(layout, tried.job, None)
    if plan is None or last is None:
        raise NotFound(f"job {tried.job} has no checkpoint to go on from", hint=f"gptjobs checkpoints list {tried.job}")
    left = plan.settled.end_step - last.manifest.step
    overrides = {"steps": Given(left, f"what was left of trial {tried.trial.number}"), **control.of_one_job(plan)}
    return sweep.part(tried.trial, len(tried.jobs), kind="resume", parent=last.name, overrides=overrides)
