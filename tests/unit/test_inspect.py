"""What is odd in a source: the range that was planted is named, and nothing in text that is all alike."""

import json
from pathlib import Path
from typing import Any

import pytest

from gptjobs.data import encoding, tokens
from gptjobs.data.inspect import KINDS, MEASURES, Inspection, inspect
from gptjobs.errors import Refused
from gptjobs.layout import Layout
from tests.odd_text import book, overlap, planted, poison
from tests.unit.test_training import attempted, planned
from worker import anomalies, stretches
from worker import inspect as process
from worker.anomalies import SIDES

BOOK = book(300_000)
FIRST_KINDS = {
    "one line": "repetition", "one byte": "repetition", "random bytes": "no-text", "printable": "language",
    "base64": "tokens", "hexadecimal": "tokens", "Cyrillic": "script",
}  # fmt: skip


def tokens_of(layout: Layout, content: bytes, name: str = "bytes") -> tuple[Path, Path]:
    source = layout.root / "sources" / "book.md"
    source.write_bytes(content)
    digest = tokens.digest_of(source)
    tokens.prepare(layout, source, digest, name)
    return source, layout.token_file("book", digest, name)


def inspected(layout: Layout, content: bytes, **options: Any) -> Inspection:
    return inspect(layout, *tokens_of(layout, content), "bytes", **options)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        *((kind, 0.4) for kind in FIRST_KINDS),
        *((kind, part) for kind in ("one line", "printable") for part in (0.0, 1.0)),
    ],
)
def test_a_range_that_is_odd_is_named_first_and_why(layout: Layout, kind: str, part: float) -> None:
    content, first, last = planted(BOOK, poison(kind, 20_000), part)
    found = inspected(layout, content).anomalies
    assert overlap((found[0].first, found[0].last), (first, last)) >= 0.8
    assert FIRST_KINDS[kind] in found[0].kinds
    assert found[0].score >= 10 and len(found[0].reasons) >= len(found[0].kinds)
    assert (found[0].first_byte, found[0].last_byte) == (found[0].first, found[0].last)
    assert found[0].first_line == content[: found[0].first].count(b"\n") + 1
    assert found[0].last_line == content[: found[0].last - 1].count(b"\n") + 1


@pytest.mark.parametrize("kind", ["one line", "printable"])
def test_the_ends_of_a_range_are_found_within_a_quarter_of_a_window(layout: Layout, kind: str) -> None:
    """Wherever they are in their windows."""
    for part in (0.41, 0.43):
        content, first, last = planted(BOOK, poison(kind, 10_700), part)
        found = inspected(layout, content).anomalies[0]
        assert abs(found.first - first) <= 256 and abs(found.last - last) <= 256


def told(layout: Layout, content: bytes, capsys: pytest.CaptureFixture[str]) -> Any:
    """What the process prints last, run within this one."""
    source, file = tokens_of(layout, content)
    assert process.main([str(layout.root), str(source), str(file), "bytes"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])["inspection"]


def test_a_file_read_in_many_pieces_is_scored_as_one_read_at_once(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for what stands across two of them, in counts over the whole file."""
    content, _, _ = planted(BOOK, poison("printable", 20_000) + BOOK[:20_000] + "x" * 9000, 0.6)
    monkeypatch.setattr(stretches, "PIECE_TOKENS", len(content))
    at_once = told(layout, content, capsys)
    monkeypatch.setattr(stretches, "PIECE_TOKENS", 3000)
    in_pieces = told(layout, content, capsys)
    assert [each["kinds"] for each in in_pieces["anomalies"]] == [each["kinds"] for each in at_once["anomalies"]]
    for each, other in zip(in_pieces["anomalies"], at_once["anomalies"], strict=True):
        for name in ("first_byte", "last_byte", "first_line", "last_line"):
            assert abs(each[name] - other[name]) <= 256
    for name in ("compression", "no_text", "repeated", "tokens", "line"):
        assert in_pieces["scores"][name] == at_once["scores"][name]
    for name in ("byte_pairs", "script"):
        assert in_pieces["scores"][name] == pytest.approx(at_once["scores"][name], rel=0.02, abs=0.02)


def test_reasons_are_words_with_numbers(layout: Layout) -> None:
    cyrillic, line = poison("Cyrillic", 20_000), poison("one line", 20_000)
    content, _, _ = planted(planted(BOOK, cyrillic, 0.2)[0].decode(), line, 0.7)
    one, other = inspected(layout, content).anomalies
    assert "script changes from Latin to Cyrillic" in one.reasons
    assert any(each.startswith("compresses to ") and "(median " in each for each in other.reasons)


def test_text_that_is_alike_has_no_odd_range(layout: Layout) -> None:
    found = inspected(layout, BOOK.encode())
    assert found.anomalies == ()
    assert found.token_count == len(BOOK) and found.window == 1024 and found.every == 1
    assert set(found.scores) == set(MEASURES) - {"loss"}
    assert {len(each) for each in found.scores.values()} == {-(-len(BOOK) // 1024)}


def test_a_copy_of_what_came_before_is_named_and_not_its_origin(layout: Layout) -> None:
    content, first, last = planted(BOOK, BOOK[50_000:80_000], 0.8)
    (found,) = inspected(layout, content).anomalies
    assert found.kinds == ("copied",)
    assert overlap((found.first, found.last), (first, last)) >= 0.8


def test_a_line_far_longer_than_others_is_named(layout: Layout) -> None:
    content, first, last = planted(BOOK, book(30_000, seed=5).replace("\n", " "), 0.5)
    found = next(each for each in inspected(layout, content).anomalies if "long-line" in each.kinds)
    assert overlap((found.first, found.last), (first, last)) >= 0.8


@pytest.mark.parametrize("content", ["a", "the owl\n", "x" * 5000, "\n" * 5000, "漢" * 3000])
def test_text_too_short_or_too_plain_to_compare_has_no_odd_range(layout: Layout, content: str) -> None:
    assert inspected(layout, content.encode()).anomalies == ()


def test_all_of_it_is_read_twice_and_told(layout: Layout) -> None:
    done: list[int] = []
    inspected(layout, BOOK.encode(), advance=done.append)
    assert sum(done) == 2 * len(BOOK)


def test_windows_may_be_larger(layout: Layout) -> None:
    content, first, last = planted(BOOK, poison("one line", 40_000), 0.4)
    found = inspected(layout, content, window=4096)
    assert found.window == 4096
    assert overlap((found.anomalies[0].first, found.anomalies[0].last), (first, last)) >= 0.8


def test_tokens_of_several_bytes_are_named_by_token_byte_and_line(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """GPT-2's own table cannot be had everywhere: this one has pairs of letters."""
    pairs = [f"{one}{other}".encode() for one in "bcdfghlmnprstvw" for other in "aeiou"]
    ranks = {bytes([each]): each for each in range(256)} | {each: 256 + place for place, each in enumerate(pairs)}
    monkeypatch.setattr(encoding, "ranks", lambda layout: ranks)
    content, first, last = planted(BOOK, poison("printable", 40_000), 0.4)
    source, file = tokens_of(layout, content, "r50k_base")
    assert process.main([str(layout.root), str(source), str(file), "r50k_base"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["inspection"]["anomalies"][0]
    assert found["last"] - found["first"] < found["last_byte"] - found["first_byte"]
    assert overlap((found["first_byte"], found["last_byte"]), (first, last)) >= 0.8
    assert found["first_line"] == content[: found["first_byte"]].count(b"\n") + 1


def test_the_scores_of_many_windows_are_told_by_their_oddest(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, first, _ = planted(BOOK, poison("one byte", 20_000), 0.5)
    monkeypatch.setattr(process, "MOST_SCORES", 50)
    found = told(layout, content, capsys)
    every, scores = found["every"], found["scores"]["compression"]
    assert every > 1 and len(scores) <= 50
    assert min(range(len(scores)), key=scores.__getitem__) in range(
        first // 1024 // every, (first + 20_000) // 1024 // every + 1
    )


def test_a_models_loss_is_one_more_measure(layout: Layout) -> None:
    """Of one that has learned the text, on text that is odd to it."""
    plan = planned(layout, "first", steps=40, learning_rate=3e-3)
    learned = attempted(layout, plan).last
    text = (layout.root / "sources" / "text.md").read_text() * 2
    content, first, last = planted(text, poison("printable", 10_000), 0.5)
    done: list[int] = []
    found = inspected(layout, content, window=256, loss_of=learned.name, advance=done.append)
    odd = next(each for each in found.anomalies if "loss" in each.kinds)
    assert any(each.startswith("the model's loss ") for each in odd.reasons)
    assert overlap((odd.first, odd.last), (first, last)) >= 0.8
    assert len(found.scores["loss"]) == len(found.scores["tokens"])
    assert sum(done) == pytest.approx(3 * len(content), rel=0.01)


def test_a_checkpoint_that_cannot_be_computed_with_is_refused(layout: Layout) -> None:
    learned = attempted(layout, planned(layout, "first")).last
    layout.path(learned.name).write_bytes(b"torn")
    with pytest.raises(Refused):
        inspected(layout, BOOK.encode(), loss_of=learned.name)


def test_a_source_that_goes_away_meanwhile_is_said_without_a_traceback(
    layout: Layout, capfd: pytest.CaptureFixture[str]
) -> None:
    source, file = tokens_of(layout, BOOK.encode())
    source.unlink()
    with pytest.raises(Refused, match="cannot be read: No such file"):
        inspect(layout, source, file, "bytes")
    assert capfd.readouterr().err == ""


def test_every_measure_has_a_side_a_floor_and_a_kind_that_is_explained() -> None:
    assert {name for name, _, _ in SIDES} == set(anomalies.FLOORS) == set(MEASURES)
    assert {kind for _, _, kind in SIDES} == set(KINDS)
