"""`gptjobs plot`: jobs' losses as a picture, in a file or in the terminal."""

import shutil
from pathlib import Path
from typing import Any

import click

from gptjobs.cli import output
from gptjobs.cli.complete import jobs_argument
from gptjobs.cli.place import Place, pass_place
from gptjobs.errors import GptjobsError, NotFound, UsageError
from gptjobs.history import History
from gptjobs.reference import jobs_on_record, pick

_TEXT_LINES = 20
_SEVERAL = "losses.png"


@click.command(epilog="Example: gptjobs plot first second --output both.png")
@jobs_argument
@click.option(
    "--output",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"The PNG to write.  [default: JOB.png here; {_SEVERAL} for several jobs]",
)
@click.option("--text", is_flag=True, help="Draw in the terminal instead.")
@pass_place
def plot(place: Place, jobs: tuple[str, ...], file: Path | None, text: bool) -> None:
    """Draw losses and learning rate over tokens, of one job or of several to compare; prints the file's path.

    Needs no Redis.
    """
    if file is not None and (text or file.suffix.lower() != ".png"):
        raise UsageError(
            "--text writes no file" if text else f"{file} is no name of a PNG", hint="--output FILE.png, or --text"
        )
    metrics = _metrics(place, jobs)
    if text:
        _print(metrics)
        return
    from gptjobs import picture

    path = file or Path(f"{next(iter(metrics))}.png" if len(metrics) == 1 else _SEVERAL)
    try:
        picture.draw(path, metrics)
    except ModuleNotFoundError as error:
        raise GptjobsError(
            "a PNG needs matplotlib, which is not installed here",
            hint="pip install 'gptjobs[worker]', or --text to draw in the terminal",
        ) from error
    except OSError as error:
        raise GptjobsError(f"{path} cannot be written: {error.strerror}", hint="--output FILE.png elsewhere") from error
    output.result(str(path))


def _metrics(place: Place, references: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """The metrics of each job, by its name, or by its id where two have the same name."""
    known = {each.id: each for each in jobs_on_record(place.layout)}
    found: dict[str, list[dict[str, Any]]] = {}
    for id in dict.fromkeys(pick(each, list(known.values())) for each in references):
        name = known[id].name or id
        found[id if name in found else name] = History(place.layout, id).read().metrics
        if not found[id if id in found else name]:
            raise NotFound(f"job {name} has reported no losses yet", hint=f"gptjobs watch {name}")
    return found


def _print(jobs: dict[str, list[dict[str, Any]]]) -> None:
    """One chart below the other, all of the same window, so that they compare."""
    from rich.console import Console

    from gptjobs.cli import chart

    console = Console(highlight=False, width=shutil.get_terminal_size().columns)
    window = chart.window_of(jobs.values())
    if window is None:
        raise NotFound("no losses were reported that are numbers", hint=f"gptjobs logs {next(iter(jobs))}")
    for name, metrics in jobs.items():
        console.print(name, style="bold", markup=False)
        for line in chart.losses(metrics, window, width=console.width, height=_TEXT_LINES):
            line.rstrip()
            console.print(line)
