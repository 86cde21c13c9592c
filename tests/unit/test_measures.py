"""What is measured of a window: each number is what its formula says, of text made for it."""

import math

import numpy as np
import pytest

from tests.odd_text import book, poison
from worker import measures, scripts
from worker.measures import SHINGLE, Counts, Whole
from worker.stretches import MOST_WINDOWS, window_of

TEXT = book(20_000)


def tokens(text: str) -> "np.ndarray[tuple[int], np.dtype[np.uint16]]":
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16)


def test_what_repeats_itself_compresses_and_noise_does_not() -> None:
    words, line, noise = (each.encode()[:4000] for each in (TEXT, poison("one line", 4000), poison("printable", 4000)))
    assert measures.compression(line) < 0.1 < measures.compression(words) < 0.7 < measures.compression(noise)


@pytest.mark.parametrize(
    ("text", "part"),
    [("plain text\r\n\tof a\fpage", 0), ("\x00\x01\x02\x1b", 1), ("abc\x7f", 1 / 4), ("ab��", 1 / 2), ("é漢🦉—", 0)],
)
def test_controls_and_what_could_not_be_decoded_are_no_text(text: str, part: float) -> None:
    assert measures.no_text(scripts.counts(text.encode())) == part


def test_cross_entropy_is_that_of_the_rest_of_the_file() -> None:
    """The file has a hundred a and ten b; of them the window has all b and ten a."""
    everywhere = np.zeros(measures.SYMBOLS, dtype=np.int64)
    everywhere[[0, 1]] = 100, 10
    window = np.array([0, 1] * 10, dtype=np.uint16)
    expected = -(math.log(91 / 92) + math.log(1 / 92)) / 2
    assert measures.cross_entropy(window, Counts(everywhere)) == pytest.approx(expected)


def test_pairs_of_bytes_are_each_byte_with_the_next() -> None:
    assert measures.byte_pairs(b"abc").tolist() == [0x6162, 0x6263]


@pytest.mark.parametrize(
    ("text", "script"),
    [("the owl", "Latin"), ("сова", "Cyrillic"), ("γλαύξ", "Greek"), ("猫頭鷹", "Han"), ("ふくろう", "Kana"),
     ("부엉이", "Hangul"), ("ينشوف", "Arabic"), ("ינשוף", "Hebrew"), ("उल्लू", "Devanagari"),
     ("12, 3! ═ 🦉", "no letter"), ("ጉጉት", "another script")],
)  # fmt: skip
def test_characters_are_of_their_scripts(text: str, script: str) -> None:
    assert scripts.SCRIPTS[int(scripts.counts(text.encode()).argmax())] == script


def test_a_script_is_foreign_where_the_rest_of_the_file_has_few_letters_of_it() -> None:
    latin, cyrillic = scripts.counts(TEXT.encode()), scripts.counts("сова".encode())
    assert measures.foreign_script(cyrillic, latin + cyrillic) > 5
    assert measures.foreign_script(cyrillic, latin + 10_000 * cyrillic) < 1
    assert measures.foreign_script(scripts.counts(b"the owl"), latin) < 0.01


def test_a_character_that_a_window_cuts_is_left_out() -> None:
    assert scripts.counts("漢字".encode()[1:]).sum() == 1


def test_the_part_of_ngrams_that_repeat_is_counted() -> None:
    alone = np.arange(measures.NGRAM * 2, dtype=np.uint16)
    assert measures.repeated(alone) == 0
    twice = np.concatenate([alone, alone])
    assert measures.repeated(twice) == pytest.approx(
        (len(alone) - measures.NGRAM + 1) / (len(twice) - measures.NGRAM + 1)
    )
    assert measures.repeated(alone[:3]) == 0


def test_a_hash_is_of_the_ngram_alone() -> None:
    text = tokens("the owls watch the owls watch")
    hashes = measures.ngrams(text, 8)
    assert len(hashes) == len(text) - 7
    assert hashes[0] == hashes[15] and len(set(hashes.tolist())) == len(
        {bytes(text[at : at + 8]) for at in range(len(hashes))}
    )


def test_what_stands_earlier_is_copied_and_its_first_place_is_not() -> None:
    first, middle = tokens(TEXT[:4000]), tokens(TEXT[4000:12_000])
    everything = np.concatenate([first, middle, first])
    hashes, places = measures.shingles(everything, 16)
    each, at, count = np.unique(hashes, return_index=True, return_counts=True)
    none = np.zeros(1, dtype=np.int64)
    whole = Whole(
        tokens=Counts(none),
        pairs=Counts(none),
        scripts=none,
        copied=each[count > 1],
        copied_first=places[at[count > 1]],
        sampling=16,
    )
    assert measures.copied(first, 0, whole) == 0
    assert measures.copied(first, 12_000, whole) == 1
    assert measures.copied(middle, 4000, whole) < 0.1
    assert measures.copied(first[: SHINGLE - 1], 12_000, whole) == 0


def test_shingles_are_the_same_ones_wherever_a_text_stands() -> None:
    text = tokens(TEXT[:4000])
    one, _ = measures.shingles(text, 16)
    other, _ = measures.shingles(np.concatenate([tokens("something before"), text]), 16)
    assert len(one) > 100 and set(one.tolist()) <= set(other.tolist())


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_each_window_has_the_longest_line_that_it_has_a_part_of(size: int) -> None:
    text = b"a\n\nbcdefghijklmno\npq\n" + 20 * b"r" + b"\n" + b"stu"
    begins = range(0, len(text), size)
    cut = [text[at : at + size] for at in begins]
    found = [measures.line_ends(each) for each in cut]
    bounds = np.array([(at, at + len(each)) for at, each in zip(begins, cut, strict=True)])
    ends = np.array(
        [(at + one, at + other) if one >= 0 else (-1, -1) for at, (one, other, _) in zip(begins, found, strict=True)]
    )
    longest = measures.longest_lines(bounds, ends, np.array([inner for _, _, inner in found]))
    places, at = [], 0
    for line in text.split(b"\n"):
        places.append((at, at + len(line), len(line)))
        at += len(line) + 1
    for (begin, end), length in zip(bounds, longest, strict=True):
        assert length == max(size for first, last, size in places if first <= end and begin <= last)


def test_a_large_file_has_larger_windows_and_never_more_than_can_be_kept() -> None:
    assert window_of(10**6, 1024) == 1024
    for count in (10**9, 10**10, 10**12):
        assert MOST_WINDOWS / 2 <= count / window_of(count, 1024) <= MOST_WINDOWS
