"""`gptjobs list`: the jobs in the queue."""

import click

from gptjobs.cli import output
from gptjobs.cli.place import Place, json_option, pass_place
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
