"""`gptjobs logs`: what a job's trainers said."""

import time

import click

from gptjobs.cli import output
from gptjobs.cli.complete import job_argument
from gptjobs.cli.follow import POLL_S, Followed, detachable, exit_as
from gptjobs.cli.place import Place, pass_place
from gptjobs.job import Job


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
