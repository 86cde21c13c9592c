"""Repair: after Redis was flushed or its volume lost, put every job on record in the storage root back into it."""

import time
from collections.abc import Callable
from dataclasses import replace

from gptjobs import control, record, sweeping, trials
from gptjobs.broker import App
from gptjobs.errors import GptjobsError
from gptjobs.job import WAYS, Cause, Job
from gptjobs.layout import Layout
from gptjobs.leases import LEASE_TTL_S
from gptjobs.store import Store
from gptjobs.sweep import Sweep
from gptjobs.trials import GOING_ON

UNSEEN_TOKENS = 1000
"""that Redis may have given, to attempts that had not begun: tokens never come back"""
HOLDERS_S = LEASE_TTL_S + 2.0
"""A trainer's holder puts its job back at its next beat; after so long without, it has none."""


def missing(store: Store, layout: Layout, say: Callable[[str], None]) -> list[Job]:
    """The jobs on record that Redis has not, as the storage root has them, oldest first."""
    there = store.ids()
    found = []
    for path in layout.outputs.glob("*/job.json"):
        if path.parent.name not in there:
            try:
                found.append(record.read_job(layout, path.parent.name))
            except GptjobsError as error:
                say(error.message)
    return sorted(found, key=lambda each: each.spec.submitted_at)


def missing_sweeps(store: Store, layout: Layout) -> list[Sweep]:
    """The sweeps on record that are to go on, and that Redis has not."""
    there = {each.id for each in store.sweeps()}
    on_record = [each for each in trials.sweeps(layout) if each.id not in there]
    return [each for each in on_record if sweeping.state(layout, each) == GOING_ON]


def put_back(store: Store, layout: Layout, app: App, jobs: list[Job]) -> list[Job]:
    """Put these jobs back as they are; returns those that were still missing. Rings for the ones that wait."""
    return [each for each in jobs if control.restore(store, layout, app, each)]


def wait_for_holders(store: Store, jobs: list[Job], tick: Callable[[], None]) -> list[Job]:
    """Those of the jobs that no holder put back within a lease's TTL, as they are without one."""
    deadline = time.monotonic() + HOLDERS_S
    ids = {each.spec.id for each in jobs}
    while ids - store.ids() and time.monotonic() < deadline:
        tick()
    there = store.ids()
    return [released(each) for each in jobs if each.spec.id not in there]


def released(job: Job) -> Job:
    """A job in work whose holder is gone."""
    return replace(
        job,
        state=WAYS["release"][job.state],
        token=job.token + UNSEEN_TOKENS,
        reason=f"lost {job.worker}",
        cause=Cause.LOST_HOST,
    )
