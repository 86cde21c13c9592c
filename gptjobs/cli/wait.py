"""`gptjobs wait`: until jobs end."""

import time

import click

from gptjobs import trials
from gptjobs.cli import output
from gptjobs.cli.complete import jobs_argument
from gptjobs.cli.follow import POLL_S, Followed, detachable, exit_as
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.errors import JobFailed, NotFound, Refused, WaitedTooLong
from gptjobs.job import Job, JobState
from gptjobs.sweep import Sweep
from gptjobs.trials import FINISHED, STOPPED


class Awaited:
    """A job that may not be there yet."""

    def __init__(self, place: Place, reference: str) -> None:
        self._place, self._reference = place, reference
        self._followed: Followed | None = None
        self._was_missed = False

    @property
    def job(self) -> Job | None:
        return self._followed.job if self._followed else None

    def look(self) -> Job | None:
        if self._followed is not None:
            return self._followed.job if self._followed.job.state.is_terminal else self._followed.look_and_say()
        try:
            self._followed = Followed(self._place, self._place.find(self._reference).job)
        except NotFound as error:
            if not self._was_missed:
                output.say(f"{error.message} ({error.hint}); waiting for it, Ctrl-C detaches")
            self._was_missed = True
        return self.job

    def __str__(self) -> str:
        job = self.job
        return f"job {job.spec.id} is still {job.state}" if job else f"no job is called {self._reference}"


def _sweep(place: Place, reference: str) -> Sweep | None:
    """The sweep that is called so; None where a job may be meant."""
    return next((each for each in reversed(trials.sweeps(place.layout)) if reference in (each.id, each.name)), None)


def _is_over(place: Place, sweep: Sweep) -> bool:
    """Raises Refused for one that was stopped: it would be waited for without an end."""
    from gptjobs import sweeping

    state = sweeping.state(place.layout, sweep)
    if state == STOPPED:
        raise Refused(f"sweep {sweep.called} was stopped", hint=f"gptjobs sweep start {sweep.called}")
    return state == FINISHED


@click.command("wait", epilog="Example: gptjobs wait @ --timeout 3600")
@jobs_argument
@click.option("--any", "for_any", is_flag=True, help="Until the first of them ends.")
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds; then exit 124.")
@json_option
@pass_place
def wait(place: Place, jobs: tuple[str, ...], for_any: bool, timeout: float | None, as_json: bool) -> None:
    """Wait until jobs end, also for jobs that are not there yet; or sweeps. Exit 0 if all finished, 1 if one failed or
    diverged, 10 if one was cancelled."""
    began = time.monotonic()
    sweeps = {each: sweep for each in jobs if (sweep := _sweep(place, each))}
    awaited = {each: Awaited(place, each) for each in jobs if each not in sweeps}
    with detachable(f"gptjobs wait {' '.join(jobs)}"):
        while True:
            states = [each.look() for each in awaited.values()]
            ended = [job for job in states if job is not None and job.state.is_terminal]
            over = [each for each in sweeps.values() if _is_over(place, each)]
            if len(ended) + len(over) == len(awaited) + len(sweeps) or (for_any and (ended or over)):
                break
            if timeout is not None and time.monotonic() - began >= timeout:
                open_jobs = (each for each in awaited.values() if not each.job or not each.job.state.is_terminal)
                open_sweeps = (f"sweep {each.called} still goes on" for each in sweeps.values() if each not in over)
                raise WaitedTooLong(f"{[*open_jobs, *open_sweeps][0]} after {timeout:g} s")
            time.sleep(POLL_S)
    if as_json:
        output.as_json({"jobs": [each.to_dict() for each in ended], "sweeps": [each.id for each in over]})
    for sweep in over if not as_json else ():
        output.result(f"{sweep.id}  {FINISHED}")
    for job in ended if not as_json else ():
        why = f"  {job.why}" if job.why else ""
        output.result(f"{job.spec.id}  {output.coloured(job.state)}{why}")
    for sweep in over:
        if not any(each.is_whole for each in trials.read(place.layout, sweep.id)):
            hint = f"gptjobs sweep show {sweep.called}"
            raise JobFailed(f"no trial of sweep {sweep.called} made all its steps", hint=hint)
    for job in sorted(ended, key=lambda each: each.state is JobState.CANCELLED):
        exit_as(job)
