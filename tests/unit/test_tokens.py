"""Tokens on disk: the same as of the whole text, placed once and whole, and no text is refused by its byte."""

import base64
import hashlib
import io
import json
import threading
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiktoken_ext.openai_public import r50k_pat_str

from gptjobs.data import encoding, tokens
from gptjobs.errors import NotFound, Refused
from gptjobs.layout import Layout

MERGES = [
    b"  ", b"    ", b"\n\n", b"\n\n\n", b"\r\n", b" \n", b"\n ", b"\t\t", b" t", b" th", b"th", b"the", b" the", b"er",
    b"re", b"'l", b"'ll", b"ll", b"in", b"ing", b"12", b"123", b"..", b"...", b"\xc3\xa9", b"\xe6\xbc", b"\xe6\xbc\xa2",
    b"\xc2\xa0", b"\xe3\x80", b"\xe3\x80\x80", b"\xf0\x9f", b"\xa6\x89", b"\xf0\x9f\xa6\x89", b". ", b".\n", b"e\n",
]  # fmt: skip
"""Also across what GPT-2's pattern parts, so that a cut in a wrong place shows."""
RANKS = {bytes([byte]): byte for byte in range(256)} | {merge: 256 + rank for rank, merge in enumerate(MERGES)}
WHOLE = tiktoken.Encoding("toy", pat_str=r50k_pat_str, mergeable_ranks=RANKS, special_tokens={})
few = settings(deadline=None, max_examples=200)

FRAGMENTS = [
    "the", "there", "ing", "they'll", "é", "漢字", "🦉", "12", "1234", "...", "'", "ll", "/", "_", " ", "  ", "     ",
    "\n", "\n\n", "\n\n\n\n", "\t", "\r\n", "\r", "\v", "\u00a0", "\u3000", "\u2028", "\u0085",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=60).map("".join)
LINES = st.lists(
    st.tuples(TEXTS.map(lambda text: text[:20]), st.sampled_from(["a", "9", "'", "~", "é", "漢", "🦉"])).map("".join),
    min_size=1,
).flatmap(lambda lines: st.sampled_from(["\n", "\r\n", "\n\n  "]).map(lambda end: end.join(lines)))
"""Lines that end in what is no white space."""


def is_line_end(before: str, after: str) -> bool:
    return not before[-1].isspace() and after[0] in "\r\n"


def pieces_of(text: str, size: int) -> list[bytes]:
    return list(tokens.split(io.BytesIO(text.encode()), Path("text"), size))


def piecewise(pieces: list[bytes]) -> list[int]:
    return [token for piece in pieces for token in WHOLE.encode_ordinary(piece.decode())]


@few
@given(TEXTS, st.integers(1, 200))
@example("the owl\n\n  the end\nthey'll\n", 4)
@example("", 1)
def test_pieces_are_the_text_and_cut_between_characters(text: str, size: int) -> None:
    pieces = pieces_of(text, size)
    assert b"".join(pieces) == text.encode()
    assert all(piece and piece.decode() for piece in pieces)


@few
@given(TEXTS, st.integers(1, 200))
@example("the owl\n\n  the end  \n\n\nthey'll\n12\n", 6)
def test_a_text_cut_at_ends_of_lines_has_the_tokens_of_the_whole(text: str, size: int) -> None:
    pieces = pieces_of(text, size)
    at_ends_of_lines = all(is_line_end(one.decode(), other.decode()) for one, other in pairwise(pieces))
    if at_ends_of_lines:
        assert piecewise(pieces) == WHOLE.encode_ordinary(text)


def longest_stretch(text: str) -> int:
    """Bytes from one end of a line to the next."""
    ends = [at for at in range(1, len(text)) if is_line_end(text[:at], text[at:])]
    return max(len(text[one:other].encode()) for one, other in pairwise([0, *ends, len(text)]))


@few
@given(LINES, st.integers(1, 400))
@example("the owl\n\nthey'll\nthe", 12)
@example("the owl\r\n\r\nthey'll\r\nthe", 1)
def test_a_text_whose_lines_are_shorter_than_two_pieces_has_the_tokens_of_the_whole(text: str, more: int) -> None:
    """Whatever its lines begin with, whatever they hold."""
    size = longest_stretch(text) // 2 + more
    pieces = pieces_of(text, size)
    assert piecewise(pieces) == WHOLE.encode_ordinary(text)
    assert all(len(piece) <= 3 * size for piece in pieces)


@pytest.mark.parametrize("text", ["the", "they'll the\r\nthe\r\n", "the\n", "   ", "漢", "the\n  \n\n   "])
def test_a_text_shorter_than_a_piece_has_the_tokens_of_the_whole(text: str) -> None:
    assert piecewise(pieces_of(text, 1000)) == WHOLE.encode_ordinary(text)


@pytest.mark.parametrize("end", ["\n", "\r\n", "é\n", "。\r\n", "🦉\n\n  \n"])
def test_a_long_text_is_cut_and_each_cut_is_at_the_end_of_a_line(end: str) -> None:
    text = f"the  owls, they'll{end}   12 éé{end}" * 200
    pieces = pieces_of(text, 100)
    assert len(pieces) > 50
    assert all(is_line_end(one.decode(), other.decode()) for one, other in pairwise(pieces))
    assert piecewise(pieces) == WHOLE.encode_ordinary(text)


def test_text_without_a_place_to_cut_loses_no_byte() -> None:
    text = "漢字🦉" * 50
    pieces = pieces_of(text, 33)
    assert max(len(piece) for piece in pieces) <= 3 * 33
    assert WHOLE.decode(piecewise(pieces)) == text


@pytest.fixture
def toy(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A storage root whose r50k_base is the toy encoding, with short pieces and close marks."""
    content = b"\n".join(base64.b64encode(token) + b" %d" % rank for token, rank in RANKS.items())
    encoding.file(layout).parent.mkdir()
    encoding.file(layout).write_bytes(content)
    monkeypatch.setattr(encoding, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(tokens, "split", partial(tokens.split, size=150))
    monkeypatch.setattr(tokens, "OFFSET_EVERY", 7)
    return layout


def source_of(layout: Layout, content: bytes) -> tuple[Path, str]:
    source = layout.root / "sources" / "my text.md"
    source.write_bytes(content)
    return source, hashlib.sha256(content).hexdigest()


def read(path: Path, kind: str) -> list[int]:
    values = array(kind)
    values.frombytes(path.read_bytes())
    return list(values)


TEXT = "the  owls, they'll\n\n   12 éé watch from the\u3000old 🦉\noak tree ...\n" * 30


@pytest.mark.parametrize("name", ["r50k_base", "gpt2", "bytes"])
def test_the_token_file_holds_the_tokens_of_the_whole_text(toy: Layout, name: str) -> None:
    source, digest = source_of(toy, TEXT.encode())
    done = []
    made = tokens.prepare(toy, source, digest, name, done.append)
    expected = list(TEXT.encode()) if name == "bytes" else WHOLE.encode_ordinary(TEXT)
    file = toy.token_file("my_text", digest, name)
    assert read(file, "H") == expected
    assert made.token_count == len(expected)
    assert len(done) > 8
    assert sum(done) == len(TEXT.encode())


@pytest.mark.parametrize("name", ["r50k_base", "bytes"])
def test_every_mark_is_the_byte_where_its_token_begins(toy: Layout, name: str) -> None:
    source, digest = source_of(toy, TEXT.encode())
    made = tokens.prepare(toy, source, digest, name)
    file = toy.token_file("my_text", digest, name)
    starts, at = [], 0
    for token in read(file, "H"):
        starts.append(at)
        at += len(WHOLE.decode_single_token_bytes(token))
    assert at == made.source_bytes
    assert read(file.with_suffix(".offsets"), "Q") == starts[::7]


def test_the_manifest_tells_what_was_encoded(toy: Layout) -> None:
    source, digest = source_of(toy, TEXT.encode())
    made = tokens.prepare(toy, source, digest, "gpt2")
    file = toy.token_file("my_text", digest, "gpt2")
    assert json.loads(file.with_suffix(".json").read_bytes()) == {
        "schema": 1,
        "source": "my text.md",
        "source_sha256": digest,
        "source_bytes": len(TEXT.encode()),
        "encoding": "r50k_base",
        "token_count": len(WHOLE.encode_ordinary(TEXT)),
        "offset_every": 7,
    }
    assert tokens.read_manifest(file) == made
    assert asdict(made)["source"] == "my text.md"


def test_what_was_encoded_is_not_encoded_again(toy: Layout) -> None:
    source, digest = source_of(toy, TEXT.encode())
    made = tokens.prepare(toy, source, digest, "bytes")
    source.unlink()
    assert tokens.prepare(toy, source, digest, "bytes") == made


def test_an_encoding_that_was_never_finished_is_done_again(toy: Layout) -> None:
    source, digest = source_of(toy, TEXT.encode())
    made = tokens.prepare(toy, source, digest, "bytes")
    file = toy.token_file("my_text", digest, "bytes")
    file.with_suffix(".json").unlink()
    file.unlink()
    assert tokens.read_manifest(file) is None
    assert tokens.prepare(toy, source, digest, "bytes") == made
    assert read(file, "H") == list(TEXT.encode())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_at_once_both_succeed_and_leave_one_good_set(toy: Layout) -> None:
    source, digest = source_of(toy, TEXT.encode())
    both_in_the_middle = threading.Barrier(2, timeout=20)

    def prepare() -> tokens.TokensManifest:
        met: Iterator[object] = iter([both_in_the_middle.wait])

        def advance(count: int) -> None:
            for wait in met:
                wait()  # type: ignore[operator]

        return tokens.prepare(toy, source, digest, "bytes", advance)

    with ThreadPoolExecutor(2) as pool:
        one, other = [each.result() for each in [pool.submit(prepare), pool.submit(prepare)]]
    file = toy.token_file("my_text", digest, "bytes")
    assert one == other == tokens.read_manifest(file)
    assert read(file, "H") == list(TEXT.encode())
    assert names(file.parent) == ["bytes.bin", "bytes.json", "bytes.offsets"]


def test_a_source_that_changes_while_it_is_encoded_is_refused(toy: Layout) -> None:
    source, digest = source_of(toy, TEXT.encode())

    def advance(count: int) -> None:
        with source.open("ab") as file:
            file.write(b"!")

    with pytest.raises(Refused, match=f"has changed: its SHA-256 is not {digest[:12]}"):
        tokens.prepare(toy, source, digest, "bytes", advance)
    file = toy.token_file("my_text", digest, "bytes")
    assert tokens.read_manifest(file) is None
    assert names(file.parent) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"the owl\n" * 100 + b"th\0e", "byte 802 is zero"),
        (b"\0", "byte 0 is zero"),
        (b"the owl\n" * 100 + b"caf\xe9 au lait\n", "byte 803 is 0xe9"),
        ("the 漢字 owl\n".encode() * 100 + b"\xe6\xbc", "byte 1500 is 0xe6"),
        (b"x" * 500 + b"\xff" + b"x" * 500, "byte 500 is 0xff"),
        (b"x" * 500 + b"\x80" * 9, "byte 500 is 0x80"),
    ],
)
def test_what_is_no_text_is_refused_and_the_byte_named(toy: Layout, content: bytes, words: str) -> None:
    source, digest = source_of(toy, content)
    with pytest.raises(Refused, match=words):
        tokens.prepare(toy, source, digest, "r50k_base")
    assert names(toy.token_file("my_text", digest, "r50k_base").parent) == []


def test_the_beginning_of_a_source_is_checked_without_encoding_it(toy: Layout) -> None:
    tokens.check_beginning(source_of(toy, TEXT.encode())[0])
    with pytest.raises(Refused, match=r"no UTF-8 text: byte 3 is 0xe9"):
        tokens.check_beginning(source_of(toy, b"caf\xe9\n" + TEXT.encode())[0])


@pytest.mark.parametrize("look", [tokens.digest_of, tokens.check_beginning])
def test_an_empty_source_is_refused(layout: Layout, look: object) -> None:
    source, _ = source_of(layout, b"")
    with pytest.raises(Refused, match="empty"):
        look(source)  # type: ignore[operator]


@pytest.mark.parametrize("look", [tokens.digest_of, tokens.check_beginning])
def test_a_missing_source_is_not_found(layout: Layout, look: object) -> None:
    with pytest.raises(NotFound, match=r"there is no data file .*/nothing\.md"):
        look(layout.root / "nothing.md")  # type: ignore[operator]


def test_the_digest_is_the_sha256_of_the_source(layout: Layout) -> None:
    done = []
    source, digest = source_of(layout, TEXT.encode())
    assert tokens.digest_of(source, done.append) == digest
    assert sum(done) == len(TEXT.encode())


def test_without_its_file_the_encoding_is_not_found(layout: Layout) -> None:
    source, digest = source_of(layout, TEXT.encode())
    with pytest.raises(NotFound, match="r50k_base is not in"):
        tokens.prepare(layout, source, digest, "r50k_base")
