"""A source and its tokens, side by side, read piece by piece: memory does not grow with the file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptjobs.config import BYTES
from gptjobs.data import encoding
from gptjobs.layout import Layout
from worker.measures import SYMBOLS

PIECE_TOKENS = 1 << 18
"""A token of GPT-2's has 128 bytes at most: a piece 32 MB, and what is computed of it eight times that."""
MOST_WINDOWS = 1 << 20
"""of a file; a larger one has larger windows"""

Tokens = NDArray[np.uint16]


@dataclass(frozen=True)
class Piece:
    first: int
    """the token it begins with"""
    first_byte: int
    tokens: Tokens
    lengths: NDArray[np.int64]
    """in bytes, of each token"""
    text: bytes


class Source:
    """Cut into windows of as many tokens; the last one reaches back into the one before, to be as long."""

    def __init__(
        self, layout: Layout, source: Path, token_file: Path, name: str, window: int | None, least: int
    ) -> None:
        self._source, self._token_file = source, token_file
        self.token_count = token_file.stat().st_size // 2
        self.window = min(window or window_of(self.token_count, least), self.token_count)
        whole, rest = divmod(self.token_count, self.window)
        self.starts = np.arange(whole, dtype=np.int64) * self.window
        if rest:
            self.starts = np.append(self.starts, self.token_count - self.window)
        self._length_of = np.ones(SYMBOLS, dtype=np.int64)
        if name != BYTES:
            for token, rank in encoding.ranks(layout).items():
                self._length_of[rank] = len(token)
        # by windows that do not reach back: the byte each begins with, and the line ends before it
        self._bytes = np.zeros(whole + 1, dtype=np.int64)
        self._line_ends = np.zeros(whole + 1, dtype=np.int64)

    def pieces(self) -> Iterator[Piece]:
        """All of it, in whole windows, as many as a piece has room for."""
        count = max(1, PIECE_TOKENS // self.window) * self.window
        byte, lines = 0, 0
        with self._token_file.open("rb") as tokens, self._source.open("rb") as source:
            for first in range(0, self.token_count, count):
                here = np.fromfile(tokens, dtype="<u2", count=count)
                lengths = self._length_of[here]
                text = source.read(int(lengths.sum()))
                piece = Piece(first, byte, here, lengths, text)
                self._note(piece, lines)
                yield piece
                byte, lines = byte + len(text), lines + text.count(b"\n")

    def _note(self, piece: Piece, lines: int) -> None:
        at, offset = piece.first // self.window, 0
        for place in range(0, len(piece.tokens), self.window):
            if at < len(self._bytes):
                self._bytes[at], self._line_ends[at] = piece.first_byte + offset, lines
            end = offset + int(piece.lengths[place : place + self.window].sum())
            lines += piece.text.count(b"\n", offset, end)
            at, offset = at + 1, end

    def stretch(self, first: int, last: int) -> tuple[Tokens, bytes]:
        """Of these tokens, once all pieces were read."""
        start, tokens = self._from_window(first, last)
        here = tokens[start:]
        with self._source.open("rb") as source:
            source.seek(self.byte_of(first))
            return here, source.read(int(self._length_of[here].sum()))

    def byte_of(self, token: int) -> int:
        start, tokens = self._from_window(token, token)
        return int(self._bytes[self._place(token)] + self._length_of[tokens[:start]].sum())

    def line_of(self, token: int) -> int:
        """That on which a token begins, the first being 1."""
        place = self._place(token)
        start = int(self._bytes[place])
        with self._source.open("rb") as source:
            source.seek(start)
            return int(self._line_ends[place]) + source.read(self.byte_of(token) - start).count(b"\n") + 1

    def _place(self, token: int) -> int:
        return min(token // self.window, len(self._bytes) - 1)

    def _from_window(self, first: int, last: int) -> tuple[int, Tokens]:
        """The tokens from the beginning of that window to `last`, and where `first` is among them."""
        begin = self._place(first) * self.window
        with self._token_file.open("rb") as file:
            file.seek(2 * begin)
            return first - begin, np.fromfile(file, dtype="<u2", count=last - begin)


def window_of(token_count: int, least: int) -> int:
    """Tokens: `least`, or doubled until there are no more than MOST_WINDOWS windows."""
    window = least
    while token_count > MOST_WINDOWS * window:
        window *= 2
    return window
