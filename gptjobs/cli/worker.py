"""`gptjobs worker`: the processes that train."""

import os
import sys
import time
from difflib import get_close_matches

import click

from gptjobs import settings
from gptjobs.cli import output
from gptjobs.cli.follow import POLL_S, detachable
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.errors import NotFound, UsageError, WaitedTooLong
from gptjobs.job import DEVICES

workers_argument = click.argument("names", metavar="NAME...", nargs=-1, required=True)
timeout_option = click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait; then exit 124.")


@click.group("worker")
def group() -> None:
    """The processes that take jobs and train them."""


@group.command(epilog="Example: gptjobs worker start --device cpu --name mac")
@click.option("--name", default="worker", help="Numbered where it is taken.  [default: worker]")
@click.option("--device", type=click.Choice(DEVICES), help="[default: the best one here]")
@click.option("--slots", type=click.IntRange(1), help="Jobs at once on each device.  [default: 1]")
@click.option("--metrics", metavar="[HOST:]PORT", help="Where Prometheus may ask.  [default: nowhere; HOST: loopback]")
@pass_place
def start(place: Place, name: str, device: str | None, slots: int | None, metrics: str | None) -> None:
    """Take jobs and train them, in the foreground. Ctrl-C or SIGTERM: running jobs write a checkpoint and go
    back to the queue."""
    place.store.ping()
    command = [sys.executable, "-m", "worker", "--name", name]
    command += ["--device", device] if device else []
    command += ["--slots", str(slots)] if slots else []
    command += ["--metrics", metrics] if metrics else []
    os.execve(sys.executable, command, settings.child_environment(place.settings))


@group.command(epilog="Example: gptjobs worker drain mac")
@workers_argument
@timeout_option
@pass_place
def drain(place: Place, names: tuple[str, ...], timeout: float | None) -> None:
    """Have workers end: running jobs write a checkpoint and go back to the queue. Waits until they are gone."""
    _ask(place, names, "drain", timeout)


@group.command(epilog="Example: gptjobs worker stop mac")
@workers_argument
@timeout_option
@pass_place
def stop(place: Place, names: tuple[str, ...], timeout: float | None) -> None:
    """Have workers end at once: running jobs go back to the queue as of their last checkpoints."""
    _ask(place, names, "stop", timeout)


def _ask(place: Place, names: tuple[str, ...], what: str, timeout: float | None) -> None:
    """Ask it of the workers, and wait until they are gone."""
    there = {each.name: each for each in place.store.workers()}
    asked = [_find(each, list(there)) for each in names]
    for each in asked:
        place.store.ask_worker(each, what)
        jobs = len(there[each].jobs)
        output.say(f"{each} was asked to {what}" + (f"; {jobs} of its jobs go back to the queue" if jobs else ""))
    deadline = None if timeout is None else time.monotonic() + timeout
    with detachable("gptjobs worker list"):
        while left := [each.name for each in place.store.workers() if each.name in asked]:
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitedTooLong(f"{left[0]} is still there after {timeout:g} s", hint="gptjobs worker list")
            time.sleep(POLL_S)


def _find(name: str, there: list[str]) -> str:
    """The worker that a user means: NAME@host, or NAME where one host alone has it."""
    found = [each for each in there if name in (each, each.partition("@")[0])]
    if len(found) > 1:
        raise UsageError(f"'{name}' could be {', '.join(found)}", hint=found[0])
    if not found:
        close = get_close_matches(name, [each.partition("@")[0] for each in there], n=1)
        raise NotFound(
            f"no worker is called '{name}'", hint=f"did you mean {close[0]}?" if close else "gptjobs worker list"
        )
    return found[0]


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
                " ".join(name for name in each.queues if "." not in name),
                f"{each.busy}/{len(each.slots)}",
                " ".join(each.jobs) or "-",
                output.when(each.started_at),
                each.version,
            )
            for each in workers
        ],
    )
