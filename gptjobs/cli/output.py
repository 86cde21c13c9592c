"""What commands print: results on stdout, talk on stderr."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from gptjobs.job import JobState

SCHEMA = 1
CTRL_C = 130
"""the exit code after one"""

COLOURS = {
    JobState.RUNNING: "cyan",
    JobState.FINISHED: "green",
    JobState.FAILED: "red",
    JobState.DIVERGED: "red",
    JobState.CANCELLED: "yellow",
}


def result(text: str = "") -> None:
    click.echo(text)


def say(text: str = "") -> None:
    click.echo(text, err=True)


def as_json(content: dict[str, Any]) -> None:
    click.echo(json.dumps({"schema": SCHEMA, **content}, indent=2, ensure_ascii=False))


def coloured(state: JobState) -> str:
    """The state, in colour on a terminal; click takes the colour away elsewhere."""
    return click.style(state.value, fg=COLOURS.get(state))


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> None:
    """Columns of plain text; those in `right` are numbers."""
    everything = [tuple(headers), *(tuple(row) for row in rows)]
    lengths = [[len(click.unstyle(cell)) if "\x1b" in cell else len(cell) for cell in row] for row in everything]
    widths = [max(column) for column in zip(*lengths, strict=True)]
    on_the_right = set(right)
    lines = []
    for row, taken in zip(everything, lengths, strict=True):
        cells = []
        for i, cell in enumerate(row):
            room = " " * (widths[i] - taken[i])
            cells.append(room + cell if i in on_the_right else cell + room)
        lines.append("  ".join(cells).rstrip())
    result("\n".join(lines))


def number(value: Any, form: str) -> str:
    """`value` by a format, or a dash where it is not known."""
    return "-" if value is None else format(value, form)


def size(count: int) -> str:
    """`11.0 MB`, in powers of ten."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def is_terminal() -> bool:
    return sys.stderr.isatty()


@contextmanager
def bytes_bar(size: int, label: str) -> Iterator[Callable[[int], None]]:
    """A progress bar over `size` bytes on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not is_terminal()) as progress:
        task = progress.add_task(label, total=size)
        yield lambda count: progress.advance(task, count)
