"""What is measured of a window of text, as pure functions: numbers in, a number out."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from worker import scripts
from worker.scripts import LETTERS, NO_TEXT

SYMBOLS = 1 << 16
"""tokens and pairs of bytes are below it"""
NGRAM = 8
"""tokens of what counts as repeated within a window"""
SHINGLE = 32
"""tokens of what counts as copied from elsewhere"""

_LEVEL = 1
"""of zlib: the quickest, which tells repetition from text as well"""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Numbers = NDArray[np.integer]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Whole:
    """What windows are compared with: counts over the whole file."""

    tokens: "Counts"
    pairs: "Counts"
    scripts: NDArray[np.int64]
    copied: Hashes
    """sorted: the sampled shingles that the file has twice at least"""
    copied_first: NDArray[np.int64]
    """the token at which each of them begins for the first time"""
    sampling: int
    """of so many shingles one is looked at"""


class Counts:
    """How often each symbol is in the whole file."""

    def __init__(self, each: NDArray[np.int64]) -> None:
        self.each = each
        self.total = int(each.sum())
        self.different = int(np.count_nonzero(each))


def entropy(symbols: Counts) -> float:
    """Of their frequencies, in nats a symbol (Shannon 1948): the loss of a model that knows these and no order."""
    parts = symbols.each[symbols.each > 0] / max(1, symbols.total)
    return float(-(parts * np.log(parts)).sum())


def compression(text: bytes) -> float:
    """Bytes after DEFLATE over bytes before: low for what repeats itself, near 1 for noise. By it Whisper sees that it
    repeats itself (Radford et al. 2022, 4.5)."""
    return len(zlib.compress(text, _LEVEL)) / max(1, len(text))


def no_text(characters: NDArray[np.int64]) -> float:
    """The part of a window's characters, counted by script, that no text has: controls, U+FFFD, private use."""
    return float(characters[NO_TEXT] / max(1, characters.sum()))


def cross_entropy(symbols: Numbers, everywhere: Counts) -> float:
    """Nats a symbol: -1/n Σ log q(s), q being the frequencies in the rest of the file, without this window, each count
    one more than it is (Laplace). Of tokens, that of a unigram model; of pairs of bytes, what tells languages apart
    (Dunning 1994, Statistical Identification of Language)."""
    there, here = np.unique(symbols, return_counts=True)
    rest = np.maximum(everywhere.each[there] - here, 0) + 1  # what stands across two pieces was not counted
    total = everywhere.total - len(symbols) + everywhere.different
    return float(np.log(total) - (here * np.log(rest)).sum() / max(1, len(symbols)))


def byte_pairs(text: bytes) -> Numbers:
    """Each byte with the one after it, as one number."""
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.uint16)
    pairs: NDArray[np.uint16] = (codes[:-1] << np.uint16(8)) | codes[1:]
    return pairs


def foreign_script(characters: NDArray[np.int64], everywhere: NDArray[np.int64]) -> float:
    """Nats a character: -1/n Σ log q over its letters, q being how often the rest of the file has letters of that
    script. Near nought for a script that is common there, also in a file of several."""
    letters = characters[LETTERS]
    rest = np.maximum(everywhere[LETTERS] - letters, 0) + 1
    return float((letters * (np.log(rest.sum()) - np.log(rest))).sum() / max(1, characters.sum()))


def ngrams(tokens: Numbers, length: int) -> Hashes:
    """A hash of the `length` tokens from each token on; `length` is a power of two. Of twice the length it is that of
    the first half, times an odd number, and that of the second (Karp & Rabin 1987)."""
    hashes, factor, step = tokens.astype(np.uint64) + np.uint64(1), _FACTOR, 1
    with np.errstate(over="ignore"):
        while step < length:
            hashes = hashes[:-step] * factor + hashes[step:]
            factor, step = factor * factor, 2 * step
    return hashes


def repeated(tokens: Numbers) -> float:
    """The part of a window's n-grams of NGRAM tokens that it had before: as in the filters of Gopher's data (Rae et al.
    2021, A.1.1), there by words."""
    hashes = ngrams(tokens, NGRAM) if len(tokens) >= NGRAM else tokens[:0]
    return 1 - len(np.unique(hashes)) / len(hashes) if len(hashes) else 0.0


def shingles(tokens: Numbers, sampling: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Of all n-grams of SHINGLE tokens those whose hash is nought modulo `sampling`, a power of two, and where they
    begin: the same ones wherever a text stands (Manber 1994; Broder 1997)."""
    if len(tokens) < SHINGLE:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    hashes = ngrams(tokens, SHINGLE)
    mixed = hashes ^ (hashes >> np.uint64(31))
    chosen = np.flatnonzero(mixed & np.uint64(sampling - 1) == 0)
    return mixed[chosen], chosen


def copied(tokens: Numbers, first: int, whole: Whole) -> float:
    """The part of a window's sampled shingles that the file has before the window, which begins at token `first`."""
    hashes, _ = shingles(tokens, whole.sampling)
    if not len(hashes) or not len(whole.copied):
        return 0.0
    places = np.minimum(np.searchsorted(whole.copied, hashes), len(whole.copied) - 1)
    return float(np.mean((whole.copied[places] == hashes) & (whole.copied_first[places] < first)))


def longest_lines(bounds: NDArray[np.int64], ends: NDArray[np.int64], inner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each window the bytes of the longest line that it has a part of. Of windows in their order are known: the
    byte each begins with and the one after it, `bounds` [windows, 2]; its first and last line end, `ends` [windows, 2],
    -1 where it has none; and its longest line between two of them, `inner`."""
    has = ends[:, 0] >= 0
    after = np.where(has, ends[:, 1] + 1, 0)
    begun = np.concatenate([[0], np.maximum.accumulate(after)[:-1]])
    before = np.where(has, ends[:, 0], bounds[-1, 1])
    ended = np.concatenate([np.minimum.accumulate(before[::-1])[::-1][1:], [bounds[-1, 1]]])
    head = np.where(has, ends[:, 0], ended) - begun
    tail = np.where(has, ended - after, 0)
    longest: NDArray[np.int64] = np.maximum.reduce([head, tail, inner])
    return longest


def line_ends(text: bytes) -> tuple[int, int, int]:
    """The first and the last, -1 where there are none, and the longest line between two of them."""
    places = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord("\n"))
    if not len(places):
        return -1, -1, 0
    return int(places[0]), int(places[-1]), int(np.diff(places).max(initial=1)) - 1


@dataclass(frozen=True)
class Window:
    first: int
    tokens: Numbers
    text: bytes

    @cached_property
    def characters(self) -> NDArray[np.int64]:
        return scripts.counts(self.text)


MEASURED: dict[str, Callable[[Window, Whole], float]] = {
    "compression": lambda window, whole: compression(window.text),
    "no_text": lambda window, whole: no_text(window.characters),
    "repeated": lambda window, whole: repeated(window.tokens),
    "copied": lambda window, whole: copied(window.tokens, window.first, whole),
    "tokens": lambda window, whole: cross_entropy(window.tokens, whole.tokens),
    "byte_pairs": lambda window, whole: cross_entropy(byte_pairs(window.text), whole.pairs),
    "script": lambda window, whole: foreign_script(window.characters, whole.scripts),
}
"""By their names in gptjobs/data/inspect.py. Each is about linear in how much of a window is odd, which is how the ends
of a range are found (worker/anomalies.py)."""
