"""`gptjobs up` and `gptjobs version`."""

import signal
import sys
import threading

import click

import gptjobs
from gptjobs.cli import output
from gptjobs.cli.install import track_option
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.job import DEVICES


@click.command(epilog="Example: gptjobs up --device cpu")
@click.option("--device", type=click.Choice(DEVICES), help="The worker's.  [default: the best one here]")
@click.option("--slots", type=click.IntRange(1), help="Jobs at once, on CPU and Metal.  [default: 1]")
@track_option
@click.option("--no-worker", is_flag=True, help="Only Redis and Flower.")
@click.option("--no-flower", is_flag=True, help="No web page.")
@click.option("--flower-port", type=click.IntRange(1, 65535), default=5555, help="[default: 5555]")
@pass_place
def up(
    place: Place, device: str | None, slots: int | None, trackers: tuple[str, ...], no_worker: bool, no_flower: bool,
    flower_port: int,
) -> None:  # fmt: skip
    """Start Redis, a worker and Flower here, in the foreground.

    Redis is that of GPTJOBS_REDIS_URL, else one of this folder's own, whose data lies in .gptjobs/. Ctrl-C
    stops all in order: running jobs write a checkpoint and go back to the queue. Starting again finds the
    queue as it was.
    """
    from gptjobs.local import Stack
    from gptjobs.settings import public
    from gptjobs.trackers import check

    check(trackers)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    stack = Stack(
        settings=place.settings,
        say=_say,
        device=device,
        slots=slots,
        trackers=trackers,
        with_worker=not no_worker,
        with_flower=not no_flower,
        flower_port=flower_port,
    )
    with stack:
        _say("up", f"root    {place.settings.root}")
        _say("up", f"Redis   {public(stack.settings.redis_url)}")
        if stack.flower_url:
            _say("up", f"Flower  {stack.flower_url}")
        _say("up", "next    gptjobs submit train --help, in another terminal here; Ctrl-C stops all")
        stack.watch(stop)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _say("up", "stopping: running jobs write a checkpoint and go back to the queue")
    _say("up", "stopped")


def _say(name: str, line: str) -> None:
    output.say(f"{click.style(f'{name:<6}', fg='blue')} │ {line}")


@click.command(epilog="Example: gptjobs version --json")
@json_option
def version(as_json: bool) -> None:
    """The version of gptjobs, and of the packages that carry it."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as of

    found = {"gptjobs": gptjobs.__version__, "python": sys.version.split()[0]}
    for name in ("celery", "redis", "click", "torch", "tiktoken", "flower"):
        try:
            found[name] = of(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    if as_json:
        output.as_json({"versions": found})
        return
    for name, each in found.items():
        output.result(f"{name} {each}")
