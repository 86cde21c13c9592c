"""`gptjobs list, show, logs, wait`: jobs in the queue and on record."""

import time
from contextlib import suppress

import click

from gptjobs import checkpoint, contract, planning, record
from gptjobs.cli import output
from gptjobs.cli.complete import job_argument, jobs_argument
from gptjobs.cli.follow import POLL_S, Followed, detachable, exit_as
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.config import Plan
from gptjobs.errors import GptjobsError, NotFound, WaitedTooLong
from gptjobs.job import Job, JobState
from gptjobs.progress import duration


@click.command("list", epilog="Example: gptjobs list --state running")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([each.value for each in JobState]),
    help="Only jobs in this state; may be given several times.",
)
@click.option("-n", "--limit", type=click.IntRange(1), help="Only the newest so many.")
@json_option
@pass_place
def list_jobs(place: Place, states: tuple[str, ...], limit: int | None, as_json: bool) -> None:
    """The jobs, oldest first."""
    known = place.store.all()
    jobs = [each for each in known if not states or each.state.value in states]
    jobs = jobs[-limit:] if limit else jobs
    missing = _count_missing(place, known)
    if missing:
        output.say(f"note: {missing} more on record in {place.layout.root} that Redis has not: gptjobs repair")
    if as_json:
        output.as_json({"jobs": [each.to_dict() for each in jobs]})
        return
    if not jobs:
        if states or not missing:
            output.say("no such jobs" if states else "no jobs yet; gptjobs submit train --help")
        return
    output.table(
        ("ID", "NAME", "STATE", "STEP", "TRAIN", "VAL", "TOKENS/S", "LEFT", "DEVICE"),
        [_row(each) for each in jobs],
        right=(3, 4, 5, 6, 7),
    )


def _count_missing(place: Place, known: list[Job]) -> int:
    """The jobs on record that Redis has not."""
    there = {each.spec.id for each in known}
    return sum(path.parent.name not in there for path in place.layout.outputs.glob("*/job.json"))


def _row(job: Job) -> tuple[str, ...]:
    shown = job.to_dict()
    step = shown["stage"] or "-" if shown["step"] is None else f"{shown['step']}/{shown['end_step']}"
    return (
        shown["id"],
        shown["name"] or "-",
        output.coloured(job.state),
        step,
        output.number(shown["train_loss"], ".4f"),
        output.number(shown["val_loss"], ".4f"),
        output.number(shown["tokens_per_s"], ",.0f"),
        "-" if shown["eta_s"] is None else duration(shown["eta_s"]),
        shown["device"],
    )


@click.command("show", epilog="Example: gptjobs show @   (@ is the newest job)")
@job_argument
@json_option
@pass_place
def show(place: Place, job: str, as_json: bool) -> None:
    """One job: state, progress, contract, config with origins, checkpoints."""
    found = place.find(job).job
    plan = record.read_plan(place.layout, found.spec.id) or _what_it_will_be(place, found)
    parent = checkpoint.read(place.layout, plan.parent) if plan and plan.parent else None
    made = contract.contract(plan, parent) if plan and parent else None
    checkpoints = checkpoint.counting(place.layout, found.spec.id)
    if as_json:
        output.as_json(
            {
                **found.to_dict(),
                "config": plan.settled.to_dict() if plan else None,
                "origins": dict(plan.settled.origins) if plan else None,
                "contract": made.to_dict() if made else None,
                "checkpoints": [each.to_dict() for each in checkpoints],
                "alerts": [],
                "parent": found.spec.parent,
            }
        )
        return
    _show_facts(place, found)
    if made:
        output.result("\n" + contract.in_words(made))
    if plan:
        _show_config(plan)
    if checkpoints:
        output.result("\ncheckpoints")
        for each in checkpoints:
            loss = output.number(each.manifest.losses.val_loss, ".4f")
            output.result(f"  step {each.manifest.step:>7}  val loss {loss:>7}  {each.name}")


def _what_it_will_be(place: Place, job: Job) -> Plan | None:
    """The plan that a job's first attempt will make, where the files for it are here."""
    with suppress(GptjobsError):
        return planning.plan(place.layout, job.spec)[0]
    return None


def _show_facts(place: Place, job: Job) -> None:
    shown = job.to_dict()
    name = f" ({job.spec.name})" if job.spec.name else ""
    output.result(f"job {job.spec.id}{name}: {output.coloured(job.state)}")
    if job.why:
        output.result(f"  {job.why}")
    outcome = record.read_outcome(place.layout, job.spec.id)
    if outcome and outcome.hint:
        output.result(f"  hint: {outcome.hint}")
    output.result(f"  submitted {output.when(job.spec.submitted_at)}, priority {job.priority}")
    if job.worker:
        output.result(f"  attempt {job.attempt} on {job.worker}, {shown['device']}")
    if shown["step"] is not None:
        output.result(
            f"  step {shown['step']} of {shown['end_step']}, {shown['tokens']:,} tokens, "
            f"train loss {output.number(shown['train_loss'], '.4f')}, "
            f"val loss {output.number(shown['val_loss'], '.4f')}"
        )
    for path in place.layout.log_files(job.spec.id)[-1:]:
        output.result(f"  log {path}")


def _show_config(plan: Plan) -> None:
    settled = plan.settled.to_dict()
    output.result("\nconfig")
    output.table(
        ("  NAME", "VALUE", "FROM"),
        [
            (f"  {name}", contract.value_in_words(value), plan.settled.origins[name])
            for name, value in {**settled["model"], **settled["train"]}.items()
        ],
    )


@click.command("logs", epilog="Example: gptjobs logs -f @")
@job_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends; then exit with its code.")
@click.option("-n", "--lines", type=click.IntRange(0), help="Only the last so many lines to begin with.")
@pass_place
def logs(place: Place, job: str, follow: bool, lines: int | None) -> None:
    """What a job's trainer said, over all its attempts. Ctrl-C detaches; it never stops the job."""
    found = place.find(job).job
    if follow:
        with detachable(f"gptjobs logs -f {found.spec.id}"):
            ended = _follow_log(place, found, lines)
        exit_as(ended)
    elif not _show_log(place, found.spec.id, {}, lines):
        output.say(_no_log(place, found))


def _follow_log(place: Place, was: Job, last: int | None) -> Job:
    """Print the job's logs as they grow, until it ends; returns it then."""
    followed = Followed(place, was)
    shown = _show_log(place, was.spec.id, {}, last)
    if not shown:
        output.say(_no_log(place, was))
    while not was.state.is_terminal:
        time.sleep(POLL_S)
        now = followed.look_and_say()
        shown = _show_log(place, was.spec.id, shown, None)
        if now.attempt != was.attempt:
            output.say(f"attempt {now.attempt} on {now.worker}, {now.used_device}")
        elif now.state is not was.state and not now.state.is_terminal:
            output.say(f"the job is {_and_why(now)}")
        was = now
    return was


def _no_log(place: Place, job: Job) -> str:
    if place.layout.is_there:
        return f"no log{'' if job.state.is_terminal else ' yet'}: the job is {_and_why(job)}"
    return f"no log here: logs lie in the storage root, which {place.layout.root} is not; the job is {_and_why(job)}"


def _and_why(job: Job) -> str:
    return f"{job.state}: {job.why}" if job.why else job.state.value


def _show_log(place: Place, job: str, shown: dict[str, int], last: int | None) -> dict[str, int]:
    """Print what the logs hold beyond the bytes already shown, a file's name to a count. Bytes, not text: a
    character may be half written yet."""
    shown, new = dict(shown), b""
    for path in place.layout.log_files(job):
        with path.open("rb") as file:
            file.seek(shown.get(path.name, 0))
            new += file.read()
            shown[path.name] = file.tell()
    if last is not None:
        new = b"".join(new.splitlines(keepends=True)[-last:] if last else [])
    click.echo(new, nl=False)
    return shown


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


@click.command("wait", epilog="Example: gptjobs wait @ --timeout 3600")
@jobs_argument
@click.option("--any", "for_any", is_flag=True, help="Until the first of them ends.")
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds; then exit 124.")
@json_option
@pass_place
def wait(place: Place, jobs: tuple[str, ...], for_any: bool, timeout: float | None, as_json: bool) -> None:
    """Wait until jobs end, also for jobs that are not there yet. Exit 0 if all finished, 1 if one failed or diverged,
    10 if one was cancelled."""
    began = time.monotonic()
    awaited = {each: Awaited(place, each) for each in jobs}
    with detachable(f"gptjobs wait {' '.join(jobs)}"):
        while True:
            states = [each.look() for each in awaited.values()]
            ended = [job for job in states if job is not None and job.state.is_terminal]
            if len(ended) == len(states) or (for_any and ended):
                break
            if timeout is not None and time.monotonic() - began >= timeout:
                still = next(each for each in awaited.values() if each.job is None or not each.job.state.is_terminal)
                raise WaitedTooLong(f"{still} after {timeout:g} s")
            time.sleep(POLL_S)
    if as_json:
        output.as_json({"jobs": [each.to_dict() for each in ended]})
    for job in ended if not as_json else ():
        why = f"  {job.why}" if job.why else ""
        output.result(f"{job.spec.id}  {output.coloured(job.state)}{why}")
    for job in sorted(ended, key=lambda each: each.state is JobState.CANCELLED):
        exit_as(job)


commands = (list_jobs, show, logs, wait)
