"""`plot`: jobs' losses from the storage root alone, in a file or as text."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gptjobs import record
from gptjobs.cli import gptjobs
from gptjobs.errors import GptjobsError, NotFound, UsageError
from gptjobs.job import JobSpec
from gptjobs.layout import Layout
from gptjobs.progress import encode
from tests.unit.conftest import NOON, begin
from tests.unit.test_outputs import step


@pytest.fixture
def plotted(layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Layout:
    """Jobs `owls` and `larks`, that reported losses, and `idle`, that did not; a working directory elsewhere."""
    for id, name in (("aa0000000001", "owls"), ("aa0000000002", "larks"), ("aa0000000003", "idle")):
        record.write_spec(layout, JobSpec(id=id, kind="train", name=name, submitted_at=NOON))
        begin(layout, id, 1)
        lines = [step(number, 5 - number / 100, 5.1 if number % 50 == 0 else None) for number in range(0, 101, 10)]
        if name != "idle":
            layout.attempt_lines(id, 1).write_text("".join(encode(each, seconds=NOON) + "\n" for each in lines))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return layout


def plot(layout: Layout, *arguments: str) -> Result:
    return CliRunner().invoke(gptjobs, ["--root", str(layout.root), "plot", *arguments])


def refused(done: Result, kind: type[GptjobsError]) -> str:
    """What the error says and hints at."""
    assert isinstance(done.exception, kind)
    return f"{done.exception.message} {done.exception.hint}"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["owls"], "owls.png"),
        (["aa0000000001"], "owls.png"),
        (["owls", "larks"], "losses.png"),
        (["owls", "owls"], "owls.png"),
        (["owls", "larks", "--output", "both.PNG"], "both.PNG"),
    ],
)
def test_plot_writes_a_png_here_and_prints_its_path(plotted: Layout, arguments: list[str], name: str) -> None:
    done = plot(plotted, *arguments)
    assert (done.exception, done.stdout) == (None, f"{name}\n")
    assert [each.name for each in Path.cwd().iterdir()] == [name]
    assert Path(name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_two_jobs_of_one_name_are_both_drawn(plotted: Layout) -> None:
    record.write_spec(plotted, JobSpec(id="aa0000000009", kind="train", name="owls", submitted_at=NOON - 1))
    begin(plotted, "aa0000000009", 1)
    plotted.attempt_lines("aa0000000009", 1).write_text(encode(step(0, 5.0), seconds=NOON) + "\n")
    shown = plot(plotted, "owls", "aa0000000009", "--text").stdout
    assert "owls\n" in shown and "aa0000000009\n" in shown


def test_text_is_plain_where_it_is_piped_and_compares_jobs_on_the_same_axes(plotted: Layout) -> None:
    done = plot(plotted, "owls", "larks", "--text")
    assert done.exception is None and "\x1b" not in done.stdout
    owls, larks = (part.splitlines() for part in done.stdout.split("larks\n"))
    assert owls[0] == "owls" and owls[1:] == larks
    assert "● validation at context 64" in owls[1] and owls[-1].split() == ["0", "20k", "40k"]
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not list(Path.cwd().iterdir())


def test_what_cannot_be_drawn_is_said_with_what_to_type(plotted: Layout) -> None:
    assert "idle has reported no losses yet gptjobs watch idle" in refused(plot(plotted, "owls", "idle"), NotFound)
    assert "did you mean owls?" in refused(plot(plotted, "owl"), NotFound)
    assert "--output FILE.png" in refused(plot(plotted, "owls", "--output", "a.jpg"), UsageError)
    assert "--text writes no file" in refused(plot(plotted, "owls", "--text", "--output", "a.png"), UsageError)
    assert "cannot be written" in refused(plot(plotted, "owls", "--output", "none/a.png"), GptjobsError)


def test_without_matplotlib_plot_says_what_to_install_and_text_still_draws(
    plotted: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = refused(plot(plotted, "owls"), GptjobsError)
    assert "a PNG needs matplotlib" in said and "pip install 'gptjobs[worker]'" in said
    assert plot(plotted, "owls", "--text").exception is None
    assert not list(Path.cwd().iterdir())
