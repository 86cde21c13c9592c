"""`gptjobs worker`: the processes that train."""

import os
import sys
import time
from difflib import get_close_matches
from typing import Any

import click

from gptjobs import settings
from gptjobs.cli import output, roster
from gptjobs.cli.follow import POLL_S, detachable
from gptjobs.cli.install import install, start_options, start_words, uninstall
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.errors import NotFound, UsageError, WaitedTooLong

workers_argument = click.argument("names", metavar="NAME...", nargs=-1, required=True)
timeout_option = click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait; then exit 124.")


@click.group("worker")
def group() -> None:
    """The processes that take jobs and train them."""


@group.command(epilog="Example: gptjobs worker start --device cpu --name mac")
@start_options
@pass_place
def start(place: Place, **chosen: Any) -> None:
    """Take jobs and train them, in the foreground. Ctrl-C or SIGTERM: running jobs write a checkpoint and go
    back to the queue."""
    in_shifts = chosen["hours"] or chosen["on_ac_only"] or chosen["log"]
    if not in_shifts:
        place.store.ping()  # in shifts a worker waits for it, each time that it begins
    command = [sys.executable, "-m", "worker.shift" if in_shifts else "worker", *start_words(chosen)]
    os.execve(sys.executable, command, settings.environment_with({settings.ROOT_VARIABLE: str(place.settings.root)}))


group.add_command(install)
group.add_command(uninstall)


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
    """The workers that are there: devices with their free memory, jobs, versions, and when each was last seen."""
    workers = place.store.workers()
    seen = place.store.seen_s(workers)
    jobs = {each.spec.id: each for each in place.store.leased()}
    if as_json:
        output.as_json({"workers": [roster.as_dict(*each, jobs) for each in zip(workers, seen, strict=True)]})
        return
    if not workers:
        output.say("no workers; gptjobs worker start")
        return
    roster.table(workers, seen, jobs)
