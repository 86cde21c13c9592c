"""`gptjobs cancel, pause, unpause, retry, priority, repair`: what is asked of jobs that are there."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from gptjobs.cli import output
from gptjobs.cli.complete import job_argument, jobs_argument
from gptjobs.cli.follow import POLL_S
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.errors import NotFound, Refused
from gptjobs.job import HIGHEST_PRIORITY, Job, JobSpec, JobState


@click.command(epilog="Example: gptjobs cancel 3f9a")
@jobs_argument
@click.option("--now", is_flag=True, help="Without a last checkpoint.")
@json_option
@pass_place
def cancel(place: Place, jobs: tuple[str, ...], now: bool, as_json: bool) -> None:
    """Stop jobs for good; a running one writes a checkpoint first."""
    from gptjobs import control

    words = {JobState.CANCELLING: "it ends at once" if now else "it writes a checkpoint first"}
    _ask(place, jobs, as_json, words, lambda job: control.cancel(place.store, place.layout, job, now=now))


@click.command(epilog="Example: gptjobs pause @")
@jobs_argument
@json_option
@pass_place
def pause(place: Place, jobs: tuple[str, ...], as_json: bool) -> None:
    """Have jobs wait until they are unpaused; a running one writes a checkpoint and frees its device."""
    from gptjobs import control

    words = {JobState.PAUSING: "it writes a checkpoint first"}
    _ask(place, jobs, as_json, words, lambda job: control.pause(place.store, place.layout, job))


@click.command(epilog="Example: gptjobs unpause @")
@jobs_argument
@json_option
@pass_place
def unpause(place: Place, jobs: tuple[str, ...], as_json: bool) -> None:
    """Let paused jobs go on from their checkpoints, on any device that fits."""
    from gptjobs import control

    _ask(place, jobs, as_json, {}, lambda job: control.unpause(place.store, place.layout, place.app, job))


def _check_root(place: Place) -> None:
    """Where there is one. A client without it asks through Redis alone."""
    if place.layout.is_there:
        place.check_root()


def _ask(
    place: Place, jobs: tuple[str, ...], as_json: bool, words: dict[JobState, str], ask: Callable[[Job], JobState]
) -> None:
    """Ask it of each job, and show the state that it is in then."""
    _check_root(place)
    states: dict[str, str] = {}
    for job in [place.find(each).job for each in jobs]:
        id = job.spec.id
        if job.state.is_terminal:
            states[id] = job.state.value
            output.say(f"job {id} is {job.state} already")
            continue
        state = ask(job)
        states[id] = state.value
        if not as_json:
            output.result(f"{id}  {output.coloured(state)}" + (f": {words[state]}" if state in words else ""))
    if as_json:
        output.as_json({"jobs": states})


@click.command(epilog="Example: gptjobs priority @ 9")
@job_argument
@click.argument("value", type=click.IntRange(0, HIGHEST_PRIORITY))
@pass_place
def priority(place: Place, job: str, value: int) -> None:
    """Give a job another priority; 9 is soonest. A job that trains keeps its device."""
    from gptjobs import control

    _check_root(place)
    found = place.find(job).job
    if found.state.is_terminal:
        raise Refused(f"job {found.spec.called} is {found.state}", hint=f"gptjobs retry {found.spec.id}")
    control.prioritize(place.store, place.layout, place.app, found, value)
    output.say(f"{found.spec.id}  priority {found.priority} → {value}")


@click.command(epilog="Example: gptjobs retry @")
@job_argument
@click.option("--from-scratch", is_flag=True, help="The same request again, not from its last checkpoint.")
@json_option
@pass_place
def retry(place: Place, job: str, from_scratch: bool, as_json: bool) -> None:
    """A new job for the rest of one that ended, from its last good checkpoint."""
    from gptjobs import control

    _check_root(place)
    old = place.find(job).job
    spec = control.retry(place.layout, old, from_scratch=from_scratch)
    urls = control.addresses_of(place.store, place.layout, old.spec)
    if old.spec.notify and not urls:
        spec = replace(spec, notify=())
        output.say(f"note: nothing of it is told to {', '.join(old.spec.notify)}: these addresses are another user's")
    control.submit(place.store, place.layout, place.app, spec, urls)
    if as_json:
        output.as_json({"id": spec.id, "retries": old.spec.id, "from": spec.parent, "steps": _steps(spec)})
        return
    output.result(spec.id)
    begins = f"from {spec.parent}, {_steps(spec)} steps" if spec.parent else "from scratch"
    output.say(f"queued, {begins}. Next: gptjobs watch {spec.id}")


def _steps(spec: JobSpec) -> Any:
    return spec.overrides["steps"].value if "steps" in spec.overrides else None


@click.command(epilog="Example: gptjobs repair --dry-run")
@click.option("--dry-run", is_flag=True, help="Show what is missing; put nothing back.")
@json_option
@pass_place
def repair(place: Place, dry_run: bool, as_json: bool) -> None:
    """Put jobs and sweeps back that Redis lost, as the storage root has them.

    Those that trained get 12 s to be put back by the worker that trains them still; then they are queued.
    """
    from gptjobs import repair

    if not place.layout.is_there:
        raise NotFound(f"{place.layout.root} is no storage root", hint="--root names it")
    place.check_root()
    jobs = repair.missing(place.store, place.layout, output.say)
    sweeps = repair.missing_sweeps(place.store, place.layout)
    if not dry_run:
        for sweep in sweeps:
            place.store.begin_sweep(sweep)
        started = [each for each in jobs if each.state.has_trainer]
        jobs = repair.put_back(place.store, place.layout, place.app, [each for each in jobs if each not in started])
        if started:
            output.say(f"{len(started)} had begun: waiting up to {repair.HOLDERS_S:.0f} s for workers that train them")
            lost = repair.wait_for_holders(place.store, started, lambda: time.sleep(POLL_S))
            jobs += repair.put_back(place.store, place.layout, place.app, lost)
    if as_json:
        output.as_json({"jobs": [each.to_dict() for each in jobs], "sweeps": [each.id for each in sweeps]})
        return
    for sweep in sweeps:
        output.result(f"{sweep.id}  sweep  {sweep.name or ''}".rstrip())
    for each in jobs:
        output.result(f"{each.spec.id}  {output.coloured(each.state)}  {each.spec.name or ''}".rstrip())
    if not jobs:
        output.say("no job is missing in Redis")
        return
    count = "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs"
    output.say(f"{count} {'missing in Redis' if dry_run else 'put back'}")
