"""`gptjobs worker install` and `uninstall`: a worker that starts with the host and stays up."""

import getpass
import importlib.util
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from gptjobs import hours, settings, trackers
from gptjobs.cli import output
from gptjobs.cli.follow import POLL_S
from gptjobs.cli.place import Place, pass_place
from gptjobs.errors import GptjobsError, Refused, UsageError
from gptjobs.hours import Hours
from gptjobs.job import DEVICES
from gptjobs.layout import is_name
from gptjobs.service import Service, Systemd, Wanted, on_this_host
from gptjobs.service.systemd import linger

UP_LIMIT_S = 60.0
STAYS_S = 5.0
"""By then one that falls at its start has fallen, where its worker may rest and tell nothing."""
_DEFAULT_NAME = "worker"


def _hours(context: click.Context, option: click.Parameter, text: str | None) -> Hours | None:
    return hours.parse(text) if text else None


def _address(context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    if text:
        settings.metrics_address(text)
    return text


track_option = click.option(
    "--track", "trackers", multiple=True, type=click.Choice(list(trackers.EXTRAS)),
    help="Have it show the jobs' curves too; may be given for each.",
)  # fmt: skip
_START = (
    click.option("--name", default=_DEFAULT_NAME, help="Numbered where it is taken.  [default: worker]"),
    click.option("--device", type=click.Choice(DEVICES), help="[default: the best one here]"),
    click.option("--slots", type=click.IntRange(1), help="Jobs at once on each device.  [default: 1]"),
    click.option("--hours", metavar="FROM-TO", callback=_hours, help="Work only then: 22-8, 22:30-8:15; local time."),
    click.option("--on-ac-only", is_flag=True, help="Rest while on battery."),
    click.option(
        "--metrics",
        metavar="[HOST:]PORT",
        callback=_address,
        help="Where Prometheus may ask.  [default: nowhere; HOST: loopback]",
    ),
    track_option,
    click.option(
        "--log",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the log there, not on standard error: up to 10 MB, and five older ones.",
    ),
)
_system_option = click.option("--system", is_flag=True, help="For the whole host, as root; else for this user.")


def start_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `worker start` takes, and `worker install` for it."""
    for option in reversed(_START):
        command = option(command)
    return command


def start_words(chosen: Mapping[str, Any]) -> list[str]:
    """The options as they are typed."""
    words = ["--name", chosen["name"]]
    words += ["--device", chosen["device"]] if chosen["device"] else []
    words += ["--slots", str(chosen["slots"])] if chosen["slots"] else []
    words += ["--hours", str(chosen["hours"])] if chosen["hours"] else []
    words += ["--on-ac-only"] if chosen["on_ac_only"] else []
    words += ["--metrics", chosen["metrics"]] if chosen["metrics"] else []
    words += [f"--track={each}" for each in chosen["trackers"]]
    words += ["--log", str(chosen["log"].absolute())] if chosen["log"] else []
    return words


@click.command(epilog="Example: gptjobs worker install --name mac --hours 22-8 --on-ac-only")
@start_options
@_system_option
@click.option("--dry-run", is_flag=True, help="Show what would be written, and change nothing.")
@pass_place
def install(place: Place, system: bool, dry_run: bool, **chosen: Any) -> None:
    """Have a worker start with this host and again when it falls: by systemd on Linux, by launchd on macOS.

    Its settings, the Redis URL among them, go to a file that only its user can read. Installing again under the same
    name changes what is there, and starts it again. With --system it runs as the owner of the storage root.
    """
    service = _service(chosen["name"], system)
    root = place.layout.root
    wanted = Wanted(
        command=[sys.executable, "-m", "gptjobs", "worker", "start", *start_words(chosen)],
        environment=settings.service_environment(place.settings),
        root=root,
    )
    if dry_run:
        output.say(f"{service.definition_file}, with {', '.join(wanted.environment)} in {service.environment_file}:")
        output.result(service.definition(wanted).decode().rstrip())
        return
    if importlib.util.find_spec("torch") is None:
        raise Refused("no worker can be here: torch is not installed", hint="pip install 'gptjobs[worker]'")
    trackers.check(chosen["trackers"])
    _check(service)
    place.store.ping()
    is_there = service.definition_file.exists()
    if is_there and service.is_up():
        output.say(f"{service.definition_file.name} is up and starts anew: its jobs write checkpoints first")
    began = time.time()
    service.install(wanted)
    log = f"tail -F {shlex.quote(str(chosen['log'].absolute()))}" if chosen["log"] else service.log_command
    _wait_until_up(place, service, began, chosen, log)
    _say_what_next(service, log)
    output.result(str(service.definition_file))


@click.command(epilog="Example: gptjobs worker uninstall --name mac")
@click.option("--name", default=_DEFAULT_NAME, help="As it was installed.  [default: worker]")
@_system_option
def uninstall(name: str, system: bool) -> None:
    """Stop an installed worker, and have it start no more: running jobs write a checkpoint and go back to the queue."""
    service = _service(name, system)
    if service.definition_file.exists():
        _check(service)
        output.say(f"stopping {name}; its jobs write checkpoints first")
    service.uninstall()
    output.say(f"{service.definition_file} and {service.environment_file} are gone")


def _service(name: str, system: bool) -> Service:
    if not is_name(name):
        raise UsageError(f"'{name}' is no name for a worker", hint="letters, digits, dot, dash, underscore")
    return on_this_host(name, is_system=system)


def _check(service: Service) -> None:
    if service.is_system and os.geteuid() != 0:
        words = shlex.join([sys.executable, "-m", "gptjobs", *sys.argv[1:]])
        raise Refused(f"--system is for root, and this is {getpass.getuser()}", hint=f"sudo -E {words}")
    service.check()


def _wait_until_up(place: Place, service: Service, began: float, chosen: Mapping[str, Any], log: str) -> None:
    """Until the service is up and, unless the worker may rest now, its worker in Redis's list."""
    may_rest = chosen["on_ac_only"] or (chosen["hours"] and not chosen["hours"].contain(time.localtime()))
    deadline = time.monotonic() + UP_LIMIT_S
    up_since: float | None = None
    while True:
        up_since = (up_since or time.monotonic()) if service.is_up() else None
        stays = up_since is not None and time.monotonic() - up_since >= STAYS_S
        here = [each for each in place.store.workers() if each.host == socket.gethostname()]
        new = [each for each in here if each.started_at >= began and each.name.startswith(service.name)]
        if up_since is not None and (new or (may_rest and stays)):
            break
        if time.monotonic() > deadline:
            raise GptjobsError(
                f"{service.definition_file.name} is installed, but its worker is not there after {UP_LIMIT_S:.0f} s",
                hint=log,
            )
        time.sleep(POLL_S)
    if new:
        output.say(f"{new[0].name} is up and offers {' '.join(new[0].slots)}")
    else:
        output.say(f"{service.definition_file.name} is up; its worker takes jobs when it is time")


def _say_what_next(service: Service, log: str) -> None:
    if isinstance(service, Systemd) and not service.is_system:
        hint = linger()
        output.say(f"it ends when you log out, until: {hint}" if hint else "it starts with the host (lingering is on)")
    flag = " --system" if service.is_system else ""
    output.say(f"settings   {service.environment_file}")
    output.say(f"log        {log}")
    output.say(f"uninstall  gptjobs worker uninstall --name {service.name}{flag}")
