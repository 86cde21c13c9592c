"""The script of a character, and whether it is one that text has at all, by ranges of Unicode's blocks."""

import numpy as np
from numpy.typing import NDArray

SCRIPTS = (
    "no letter", "no text", "another script", "Latin", "Greek", "Cyrillic", "Armenian", "Hebrew", "Arabic",
    "Devanagari", "an Indian script", "Thai", "Georgian", "Hangul", "Kana", "Han",
)  # fmt: skip
NO_LETTER, NO_TEXT, ANOTHER = range(3)
LETTERS = slice(ANOTHER, len(SCRIPTS))
_CODES = 0x110000

_RANGES = {
    "no letter": [
        (0x2B0, 0x36F), (0x2000, 0x2BFF), (0x3000, 0x303F), (0xFE10, 0xFE6F), (0xFF00, 0xFFEF), (0x1F000, 0x1FAFF),
    ],
    "no text": [
        (0x00, 0x08), (0x0B, 0x0B), (0x0E, 0x1F), (0x7F, 0x9F), (0xE000, 0xF8FF), (0xFFF0, 0xFFFF), (0xF0000, 0x10FFFF),
    ],
    "Latin": [
        (0x41, 0x5A), (0x61, 0x7A), (0xAA, 0xAA), (0xBA, 0xBA), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x2AF),
        (0x1E00, 0x1EFF),
    ],
    "Greek": [(0x370, 0x3FF), (0x1F00, 0x1FFF)],
    "Cyrillic": [(0x400, 0x52F)],
    "Armenian": [(0x530, 0x58F)],
    "Hebrew": [(0x590, 0x5FF)],
    "Arabic": [(0x600, 0x6FF), (0x750, 0x77F), (0xFB50, 0xFDFF), (0xFE70, 0xFEFE)],
    "Devanagari": [(0x900, 0x97F)],
    "an Indian script": [(0x980, 0xDFF)],
    "Thai": [(0xE00, 0xE7F)],
    "Georgian": [(0x10A0, 0x10FF)],
    "Hangul": [(0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF)],
    "Kana": [(0x3040, 0x30FF), (0x31F0, 0x31FF)],
    "Han": [(0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3134F)],
}  # fmt: skip
"""First and last code point of each. Tab, line ends and form feed, which parts pages of plain text, are text; the other
controls, U+FFFD (a byte that could not be decoded, once), private use and what is no character are not."""


def _table() -> NDArray[np.uint8]:
    table = np.full(_CODES, ANOTHER, dtype=np.uint8)
    table[:0xC0] = NO_LETTER
    table[[0xD7, 0xF7, 0xFEFF]] = NO_LETTER
    for name, ranges in _RANGES.items():
        for first, last in ranges:
            table[first : last + 1] = SCRIPTS.index(name)
    return table


_TABLE = _table()


def counts(text: bytes) -> NDArray[np.int64]:
    """How many characters of each of SCRIPTS are in a stretch of UTF-8; one that its ends cut is left out."""
    codes = np.frombuffer(text.decode(errors="ignore").encode("utf-32-le"), dtype="<u4")
    return np.bincount(_TABLE[codes], minlength=len(SCRIPTS))
