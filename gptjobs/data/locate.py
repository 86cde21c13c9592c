"""From tokens back to text: where a token stands in its source, by byte and line."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gptjobs.config import BYTES
from gptjobs.data import encoding, tokens
from gptjobs.data.tokens import OFFSET_EVERY
from gptjobs.errors import NotFound
from gptjobs.layout import Layout

_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class Span:
    """Tokens `first` to before `last` of a source, and its bytes and line, the first being 1."""

    first: int
    last: int
    first_byte: int
    last_byte: int
    line: int
    text: str


class Text:
    """A source and its tokens, as one job reads them."""

    def __init__(self, layout: Layout, source: Path, token_file: Path, name: str) -> None:
        self._layout, self._source, self._token_file, self._name = layout, source, token_file, name
        if tokens.read_manifest(token_file) is None:
            raise NotFound(f"the tokens {token_file} are not there", hint="gptjobs data prepare")
        if not source.is_file():
            raise NotFound(f"the data {source} is not there any more", hint="put it back there")

    def span(self, first: int, last: int) -> Span:
        """Of tokens below the count that there is."""
        start, end = self._byte_of(first), self._byte_of(last)
        with self._source.open("rb") as file:
            file.seek(start)
            text = file.read(end - start).decode(errors="replace")
        return Span(first, last, start, end, self._lines_before(start) + 1, text)

    def _byte_of(self, token: int) -> int:
        """The byte at which a token begins: that of the last one whose byte is on record, and what is in between."""
        if self._name == BYTES:
            return token
        mark = token // OFFSET_EVERY
        (offset,) = _read(self._token_file.with_suffix(".offsets"), "Q", mark, 1) or (0,)
        between = _read(self._token_file, "H", mark * OFFSET_EVERY, token - mark * OFFSET_EVERY)
        return offset + sum(self._length_of[each] for each in between)

    @cached_property
    def _length_of(self) -> Mapping[int, int]:
        return {rank: len(token) for token, rank in encoding.ranks(self._layout).items()}

    def _lines_before(self, byte: int) -> int:
        count, left = 0, byte
        with self._source.open("rb") as file:
            while left and (piece := file.read(min(left, _READ_BYTES))):
                count, left = count + piece.count(b"\n"), left - len(piece)
        return count


def _read(path: Path, kind: str, first: int, count: int) -> "array[int]":
    """So many little-endian numbers from the one numbered `first` on."""
    values = array(kind)
    with path.open("rb") as file:
        file.seek(first * values.itemsize)
        values.frombytes(file.read(count * values.itemsize))
    return values


def shortened(text: str, width: int) -> str:
    """On one line: its beginning and its end."""
    line = " ".join(text.split())
    if len(line) <= width:
        return line
    half = (width - 3) // 2
    return f"{line[:half]} … {line[-half:]}"
