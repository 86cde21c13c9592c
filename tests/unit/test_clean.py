"""`gptjobs data inspect` and `clean` as typed: what is odd is shown, a copy without it is written, the source stays."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gptjobs.cli import gptjobs
from gptjobs.data import clean as cleaning
from gptjobs.data.clean import Cut
from gptjobs.data.inspect import Anomaly, Inspection
from gptjobs.errors import GptjobsError, NotFound, Refused, UsageError
from gptjobs.layout import Layout
from tests.odd_text import book, overlap, planted, poison
from tests.unit.test_training import attempted
from tests.unit.test_training import planned as planned_job

BOOK = book(200_000)
CONTENT, FIRST, LAST = planted(BOOK, poison("one line", 20_000), 0.4)
CONTENT, FIRST_FOREIGN, LAST_FOREIGN = planted(CONTENT.decode(), poison("Cyrillic", 20_000), 0.8)


@pytest.fixture
def here(layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Layout:
    """A working directory elsewhere, with book.md: one line repeated in one range, and another script in another."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("book.md").write_bytes(CONTENT)
    return layout


def data(layout: Layout, *words: str) -> Result:
    return CliRunner().invoke(gptjobs, ["--root", str(layout.root), "data", *words, "--encoding", "bytes"])


def refused(done: Result, kind: type[GptjobsError]) -> str:
    """What the error says and hints at."""
    assert isinstance(done.exception, kind), done.exception
    return f"{done.exception.message} {done.exception.hint}"


def files() -> set[str]:
    return {each.name for each in Path.cwd().iterdir()}


def test_inspect_shows_where_what_is_odd_stands_why_and_its_text(here: Layout) -> None:
    done = data(here, "inspect", "book.md")
    assert done.exception is None
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["TOKENS", "BYTES", "LINE", "SCORE", "WHY"]
    assert "no play makes Jack a dull boy" in done.stdout
    assert "compresses to " in done.stdout and "script changes from Latin to Cyrillic" in done.stdout
    assert "2 odd ranges in " in done.stderr
    assert "gptjobs data clean book.md --encoding bytes --out book.clean.md --dry-run" in done.stderr
    assert "--skip-tokens " in done.stderr
    assert files() == {"book.md"}


def test_inspect_as_json_has_every_range_and_the_scores(here: Layout) -> None:
    found = json.loads(data(here, "inspect", "book.md", "--json", "-n", "1").stdout)
    assert (found["schema"], found["encoding"], found["token_count"]) == (1, "bytes", len(CONTENT))
    ranges = [(each["first_byte"], each["last_byte"]) for each in found["anomalies"]]
    for planted_range in ((FIRST, LAST), (FIRST_FOREIGN, LAST_FOREIGN)):
        assert max(overlap(each, planted_range) for each in ranges) >= 0.8
    assert all(each["text"] and each["kinds"] and each["reasons"] for each in found["anomalies"])
    assert len(found["scores"]["tokens"]) == -(-len(CONTENT) // 1024)


def test_fewer_ranges_are_shown_and_that_is_said(here: Layout) -> None:
    done = data(here, "inspect", "book.md", "-n", "1")
    assert "1 of 2 are shown" in done.stderr
    assert done.stdout.count("(median") < data(here, "inspect", "book.md").stdout.count("(median")


def test_text_on_a_terminal_has_no_control_characters(here: Layout) -> None:
    content, _, _ = planted(BOOK, "\x1b[2J\x07" * 4000, 0.5)
    Path("book.md").write_bytes(content)
    shown = data(here, "inspect", "book.md").stdout
    assert "no text" in shown
    assert not any(ord(each) < 32 and each != "\n" for each in shown)


def test_the_picture_is_a_png(here: Layout) -> None:
    assert data(here, "inspect", "book.md", "--picture", "odd.png").stdout.endswith("odd.png\n")
    assert Path("odd.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert files() == {"book.md", "odd.png"}


def test_a_copy_has_all_lines_but_the_odd_ones_and_a_report_says_which(here: Layout) -> None:
    done = data(here, "clean", "book.md", "--out", "good.md")
    assert done.stdout.endswith("good.md\ngood.report.md\n")
    kept = Path("good.md").read_bytes().splitlines(keepends=True)
    before = CONTENT.splitlines(keepends=True)
    lost = [line for line in before if b"Jack" in line]
    assert sum(b"Jack" in line for line in kept) < 0.05 * len(lost)
    assert len(kept) > 0.98 * (len(before) - len(lost))
    assert set(kept) <= set(before)
    assert any("а" in line.decode() for line in kept)
    report = Path("good.report.md").read_text()
    assert f"before: {len(CONTENT):,} bytes" in report and "compresses to " in report
    assert "left in: " in done.stderr and "script" in done.stderr
    assert Path("book.md").read_bytes() == CONTENT
    assert files() == {"book.md", "good.md", "good.report.md"}


def test_what_goes_can_be_chosen(here: Layout) -> None:
    data(here, "clean", "book.md", "--out", "good.md", "--drop", "script")
    kept = Path("good.md").read_text()
    assert kept.count("Jack") == CONTENT.decode().count("Jack")
    assert kept.count("а") < 0.1 * CONTENT.decode().count("а")


def test_a_dry_run_says_the_same_and_writes_nothing(here: Layout) -> None:
    dry = data(here, "clean", "book.md", "--out", "good.md", "--dry-run", "--json")
    assert files() == {"book.md"}
    done = data(here, "clean", "book.md", "--out", "good.md", "--json")
    assert json.loads(dry.stdout) == {**json.loads(done.stdout), "dry_run": True}
    assert json.loads(done.stdout)["bytes_after"] == Path("good.md").stat().st_size
    assert data(here, "clean", "book.md", "--dry-run").exception is None


def test_nothing_is_written_over(here: Layout) -> None:
    assert "book.md is there already" in refused(data(here, "clean", "book.md", "--out", "book.md"), Refused)
    Path("good.report.md").write_text("mine")
    assert "good.report.md is there already" in refused(data(here, "clean", "book.md", "--out", "good.md"), Refused)
    assert Path("good.report.md").read_text() == "mine" and Path("book.md").read_bytes() == CONTENT
    assert files() == {"book.md", "good.report.md"}


def test_what_cannot_be_done_is_said_with_what_to_type(here: Layout) -> None:
    assert "--out book.clean.md, or --dry-run" in refused(data(here, "clean", "book.md"), UsageError)
    assert "there is no file none.md" in refused(data(here, "inspect", "none.md"), NotFound)
    assert "--picture FILE.png" in refused(data(here, "inspect", "book.md", "--picture", "a.jpg"), UsageError)
    Path("binary").write_bytes(b"\x00\xff" * 100)
    assert "is no text" in refused(data(here, "inspect", "binary"), Refused)


def test_the_loss_is_by_the_encoding_that_the_checkpoint_was_trained_on(here: Layout) -> None:
    learned = attempted(here, planned_job(here, "first")).last.name
    words = ["--root", str(here.root), "data", "inspect", "book.md", "--loss", learned]
    found = json.loads(CliRunner().invoke(gptjobs, [*words, "--json"]).stdout)
    assert found["encoding"] == "bytes" and len(found["scores"]["loss"]) == len(found["scores"]["tokens"])
    other = CliRunner().invoke(gptjobs, [*words, "--encoding", "r50k_base"])
    assert "was trained on bytes" in refused(other, UsageError)


def anomaly(first: int, last: int) -> Anomaly:
    return Anomaly(
        first=first, last=last, first_byte=first, last_byte=last, first_line=1, last_line=1, score=20.0,
        kinds=("noise",), reasons=("made",),
    )  # fmt: skip


def cut(content: bytes, *ranges: tuple[int, int]) -> list[Cut]:
    """What is cut of a source whose odd bytes are these."""
    source = Path("odd.md")
    source.write_bytes(content)
    anomalies = tuple(anomaly(first, last) for first, last in ranges)
    found = Inspection(window=8, token_count=len(content), unigram=0.0, every=1, scores={}, anomalies=anomalies)
    return cleaning.cuts(source, found, ["noise"])


@pytest.mark.parametrize(
    ("first", "last", "gone"),
    [
        (5, 6, b"bbbb\n"), (4, 8, b"bbbb\n"), (4, 9, b"bbbb\n"), (4, 10, b"bbbb\ncccc\n"), (0, 1, b"aaa\n"),
        (12, 18, b"cccc\ndddd"),
    ],
)  # fmt: skip
def test_whole_lines_go(here: Layout, first: int, last: int, gone: bytes) -> None:
    content = b"aaa\nbbbb\ncccc\ndddd"
    (found,) = cut(content, (first, last))
    assert content[found.first_byte : found.last_byte] == gone


def test_ranges_that_share_a_line_go_together(here: Layout) -> None:
    (found,) = cut(b"aaaa\nbbbbbbbb\ncccc\n", (2, 7), (9, 15))
    assert (found.first_byte, found.last_byte, found.tokens) == (0, 19, 19)
    assert len(cut(b"aaaa\nbbbb\n", (1, 3), (6, 8))) == 2


def test_a_line_without_an_end_in_sight_is_cut_between_two_characters(here: Layout) -> None:
    content = "漢".encode() * 200_000
    (found,) = cut(content, (300_001, 300_302))
    assert (found.first_byte, found.last_byte) == (300_000, 300_303)


def test_a_source_that_changed_meanwhile_leaves_no_copy(here: Layout) -> None:
    gone = cut(CONTENT, (0, 100))
    with pytest.raises(Refused, match="has changed since it was inspected"):
        cleaning.write(Path("odd.md"), "0" * 64, Path("good.md"), gone, "report", lambda count: None)
    assert files() == {"book.md", "odd.md"}
