"""What a shell completes: jobs by id or name, references to checkpoints. Read from the storage root alone, as a
key press must not wait for Redis."""

from collections.abc import Iterator

import click
from click.shell_completion import CompletionItem

from gptjobs import checkpoint, trials
from gptjobs.cli.place import Place
from gptjobs.errors import GptjobsError
from gptjobs.layout import Layout
from gptjobs.reference import BEST, LAST, NEWEST, jobs_on_record, pick


def complete_job(context: click.Context, option: click.Parameter, typed: str) -> list[CompletionItem]:
    """A job's id or name."""
    return _beginning(typed, _jobs(_layout(context), typed))


def complete_checkpoint(context: click.Context, option: click.Parameter, typed: str) -> list[CompletionItem]:
    """A path, JOB@best, JOB@last or JOB@STEP."""
    if "/" in typed:
        return [CompletionItem(typed, type="file")]
    job, at, _ = typed.rpartition("@")
    layout = _layout(context)
    return _beginning(typed, _checkpoints(layout, job) if at else _best_and_last(layout, typed))


def complete_sweep(context: click.Context, option: click.Parameter, typed: str) -> list[CompletionItem]:
    """A sweep's id or name."""
    newest_first = reversed(trials.sweeps(_layout(context)))
    return _beginning(typed, ((each.called, each.id if each.name else "") for each in newest_first))


sweep_argument = click.argument("sweep", metavar="SWEEP", shell_complete=complete_sweep)
job_argument = click.argument("job", metavar="JOB", shell_complete=complete_job)
jobs_argument = click.argument("jobs", metavar="JOB...", nargs=-1, required=True, shell_complete=complete_job)


def _layout(context: click.Context) -> Layout:
    place = context.find_object(Place)
    assert place is not None
    return Layout(place.settings.root)


def _jobs(layout: Layout, typed: str) -> Iterator[tuple[str, str]]:
    """What names each job, newest first, with its id or name; ids of jobs with a name only once one is typed."""
    for each in sorted(jobs_on_record(layout), key=lambda each: each.submitted_at, reverse=True):
        if each.name:
            yield each.name, each.id
        if typed or not each.name:
            yield each.id, each.name or ""


def _best_and_last(layout: Layout, typed: str) -> Iterator[tuple[str, str]]:
    for job, help in _jobs(layout, typed):
        yield f"{job}@{BEST}", help
        yield f"{job}@{LAST}", help


def _checkpoints(layout: Layout, job: str) -> Iterator[tuple[str, str]]:
    """The references to those of one job."""
    try:
        found = checkpoint.counting(layout, pick(job or NEWEST, jobs_on_record(layout)))
    except GptjobsError:
        return
    for which in (BEST, LAST) if found else ():
        yield f"{job}@{which}", ""
    for each in found:
        loss = each.manifest.losses.val_loss
        yield f"{job}@{each.manifest.step}", "" if loss is None else f"validation loss {loss:.4f}"


def _beginning(typed: str, found: Iterator[tuple[str, str]]) -> list[CompletionItem]:
    first: dict[str, str] = {}
    for value, help in found:
        first.setdefault(value, help)
    return [CompletionItem(value, help=help) for value, help in first.items() if value.startswith(typed)]
