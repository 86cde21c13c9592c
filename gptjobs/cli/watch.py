"""`gptjobs watch`: jobs while they train, as a picture on a terminal, as plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from gptjobs.cli import output
from gptjobs.cli.complete import complete_job
from gptjobs.cli.follow import Followed, detachable, end_of_log, exit_as
from gptjobs.cli.output import CTRL_C
from gptjobs.cli.place import Place, pass_place
from gptjobs.errors import RedisUnreachable
from gptjobs.history import History
from gptjobs.job import Job
from gptjobs.layout import Layout
from gptjobs.progress import duration

if TYPE_CHECKING:
    from rich.text import Text

    from gptjobs.cli.screen import Seen, SeenAll

POLL_S = 1.0

Show = Callable[[Callable[[Any, int, int], "list[Text]"], Any], None]
"""Takes what draws a picture, of a width and a height, and what it draws."""


@click.command(epilog="Example: gptjobs watch @   (@ is the newest job)")
@click.argument("job", metavar="[JOB]", required=False, shell_complete=complete_job)
@pass_place
def watch(place: Place, job: str | None) -> None:
    """Training, live: all jobs, or one with its losses, events and log until it ends.

    Exits with the code of the job that ended. Ctrl-C detaches; it never stops a job.
    """
    if job is not None:
        watch_job(place, place.find(job).job)
        return
    try:
        _watch_all_on_screen(place) if _on_terminal() else _watch_all_in_lines(place)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(CTRL_C) from None


def watch_job(place: Place, job: Job) -> None:
    """Show a job until it ends, then exit as it did."""
    followed = Followed(place, job)
    with detachable(f"gptjobs watch {job.spec.id}"):
        _watch_on_screen(place, followed) if _on_terminal() else _watch_in_lines(followed)
    exit_as(followed.job)


def _on_terminal() -> bool:
    from rich.console import Console

    return sys.stdout.isatty() and not Console().is_dumb_terminal


@contextmanager
def _picture() -> "Iterator[Show]":
    """What shows a picture in place of the one before. The last one stays on the terminal, also after Ctrl-C."""
    from rich.console import Console, Group
    from rich.live import Live

    console, last = Console(highlight=False), Group()
    with Live(console=console, screen=True, auto_refresh=False) as live:

        def show(draw: Callable[[Any, int, int], "list[Text]"], seen: Any) -> None:
            nonlocal last
            last = Group(*draw(seen, console.width, console.height - 1))
            live.update(last, refresh=True)

        try:
            yield show
        finally:
            live.stop()
            console.print(last)


def _watch_on_screen(place: Place, followed: Followed) -> None:
    from gptjobs.cli import screen

    sight = Sight(place.layout, followed)
    with _picture() as show:
        while True:
            show(screen.one_job, sight.look())
            if followed.job.state.is_terminal:
                return
            time.sleep(POLL_S)


def _watch_in_lines(followed: Followed) -> None:
    shown = ""
    while True:
        job = followed.look_and_say()
        line = in_one_line(job)
        if line != shown:
            output.result(line)
            shown = line
        if job.state.is_terminal:
            return
        time.sleep(POLL_S)


def _watch_all_on_screen(place: Place) -> None:
    from gptjobs.cli import screen

    with _picture() as show:
        for seen in _looks_at_all(place):
            show(screen.all_jobs, seen)


def _watch_all_in_lines(place: Place) -> None:
    shown = {job.spec.id: in_one_line(job) for job in place.store.all() if job.state.is_terminal}
    note = None
    for seen in _looks_at_all(place):
        if seen.note and not note:
            output.say(f"{seen.note.rstrip('.')}; waiting on, Ctrl-C leaves")
        note = seen.note
        for job in seen.jobs:
            line = in_one_line(job)
            if line != shown.get(job.spec.id):
                output.result(line)
                shown[job.spec.id] = line


def _looks_at_all(place: Place) -> "Iterator[SeenAll]":
    from gptjobs.cli.screen import SeenAll

    seen = SeenAll(jobs=place.store.all(), workers=place.store.workers())
    while True:
        yield seen
        time.sleep(POLL_S)
        try:
            seen = SeenAll(jobs=place.store.all(), workers=place.store.workers())
        except RedisUnreachable as error:
            seen = replace(seen, note=error.message)


def in_one_line(job: Job) -> str:
    """`plateau  running  step 1010/2000, train loss 2.5653, …`"""
    shown = job.to_dict()
    parts = [shown["stage"]] if shown["stage"] not in (None, "training") else []
    if job.why:
        parts.append(job.why)
    if shown["step"] is not None:
        parts.append(f"step {shown['step']}/{shown['end_step']}")
        parts.append(f"train loss {output.number(shown['train_loss'], '.4f')}")
        parts.append(f"val loss {output.number(shown['val_loss'], '.4f')}")
        parts.append(f"lr {output.number(shown['learning_rate'], '.3g')}")
        parts.append(f"grad norm {output.number(shown['grad_norm'], '.4f')}")
        parts.append(f"{output.number(shown['tokens_per_s'], ',.0f')} tokens/s")
    if shown["eta_s"] is not None:
        parts.append(f"{duration(shown['eta_s'])} left")
    return f"{job.spec.called}  {job.state}  {', '.join(parts)}".rstrip()


class Sight:
    """Looks at a job again and again: its record in Redis, its history and log in the storage root, which may
    be ahead of Redis. Without the root, its metrics are the progress that Redis had at each look."""

    def __init__(self, layout: Layout, followed: Followed) -> None:
        self._layout, self._followed = layout, followed
        self._history = History(layout, followed.job.spec.id)
        self._glimpses: list[dict[str, Any]] = []
        self._log: list[str] = []

    def look(self) -> "Seen":
        from gptjobs.cli.screen import Seen

        job, note = self._followed.look(), self._followed.away
        try:
            self._history.read()
            self._log = end_of_log(self._layout, job.spec.id)
        except OSError as error:
            note = note or f"the storage root does not work: {error}"
        metrics = self._history.metrics
        if metrics and metrics[-1]["step"] > job.progress.get("step", 0):
            said = {name: value for name, value in metrics[-1].items() if value is not None}
            job = replace(job, progress={**job.progress, **said})
        self._keep(job)
        return Seen(
            job=job,
            metrics=metrics or self._glimpses,
            events=self._history.events,
            log=self._log,
            note=note,
        )

    def _keep(self, job: Job) -> None:
        """Redis has the newest of each value: a validation loss that it had before is not this step's."""
        newest = job.to_dict()
        before = self._glimpses[-1] if self._glimpses else None
        if newest["step"] is None or (before and before["step"] == newest["step"]):
            return
        known = [each["val_loss"] for each in self._glimpses if each["val_loss"] is not None]
        if known and known[-1] == newest["val_loss"]:
            newest["val_loss"] = None
        self._glimpses = [each for each in self._glimpses if each["step"] < newest["step"]]
        self._glimpses.append(newest)
