"""`gptjobs worker`: the processes that train."""

import os
import sys

import click

from gptjobs import settings
from gptjobs.cli import output
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.job import DEVICES


@click.group("worker")
def group() -> None:
    """The processes that take jobs and train them."""


@group.command(epilog="Example: gptjobs worker start --device cpu --name mac")
@click.option("--name", default="worker", help="Numbered where it is taken.  [default: worker]")
@click.option("--device", type=click.Choice(DEVICES), help="[default: the best one here]")
@click.option("--slots", type=click.IntRange(1), help="Jobs at once, on CPU and Metal.  [default: 1]")
@pass_place
def start(place: Place, name: str, device: str | None, slots: int | None) -> None:
    """Take jobs and train them, in the foreground. Ctrl-C or SIGTERM: running jobs write a checkpoint and go
    back to the queue."""
    place.store.ping()
    command = [sys.executable, "-m", "worker", "--name", name]
    command += ["--device", device] if device else []
    command += ["--slots", str(slots)] if slots else []
    os.execve(sys.executable, command, settings.child_environment(place.settings))


@group.command("list", epilog="Example: gptjobs worker list")
@json_option
@pass_place
def list_workers(place: Place, as_json: bool) -> None:
    """The workers that are there."""
    workers = place.store.workers()
    if as_json:
        output.as_json({"workers": [vars(each) for each in workers]})
        return
    if not workers:
        output.say("no workers; gptjobs worker start")
        return
    output.table(
        ("NAME", "SLOTS", "QUEUES", "BUSY", "JOBS", "SINCE", "VERSION"),
        [
            (
                each.name,
                " ".join(each.slots),
                " ".join(each.queues),
                f"{each.busy}/{len(each.slots)}",
                " ".join(each.jobs) or "-",
                output.when(each.started_at),
                each.version,
            )
            for each in workers
        ],
    )
