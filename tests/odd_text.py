"""Text as varied as a book's, and what is odd in the midst of it: the same on every machine."""

import base64
import random

_VOWELS, _CONSONANTS = "aeiou", "bcdfghlmnprstvw"


def book(size: int, seed: int = 1) -> str:
    """Sentences of made words, of which few are frequent and most are rare."""
    draw = random.Random(seed)
    words = ["".join(_syllable(draw) for _ in range(draw.choice((1, 1, 2, 2, 3)))) for _ in range(4000)]
    weights = [1 / (place + 3) for place in range(len(words))]
    lines, length = [], 0
    while length < size:
        line = " ".join(draw.choices(words, weights, k=draw.randrange(5, 14))).capitalize() + "."
        lines.append(line)
        length += len(line) + 1
    return "\n".join(lines) + "\n"


def _syllable(draw: random.Random) -> str:
    return draw.choice(_CONSONANTS) + draw.choice(_VOWELS) + draw.choice(("", "", "n", "r", "s"))


def poison(kind: str, size: int) -> str:
    """About so many bytes, in lines of 76 characters but for `one byte`."""
    draw = random.Random(2)
    if kind == "one line":
        return "All work and no play makes Jack a dull boy.\n" * (size // 44)
    if kind == "one byte":
        return "=" * size
    if kind == "random bytes":
        return _in_lines("".join(chr(draw.randrange(1, 256)) for _ in range(2 * size // 3)))
    if kind == "printable":
        return _in_lines("".join(chr(draw.randrange(33, 127)) for _ in range(size)))
    if kind == "base64":
        return _in_lines(base64.b64encode(draw.randbytes(3 * size // 4)).decode())
    if kind == "hexadecimal":
        return _in_lines(draw.randbytes(size // 2).hex())
    assert kind == "Cyrillic"
    turned = {ord(each): chr(0x430 + place) for place, each in enumerate("abcdefghijklmnopqrstuvwxyz")}
    return book(size // 2, seed=3).lower().translate(turned)


def _in_lines(text: str) -> str:
    return "".join(text[at : at + 76] + "\n" for at in range(0, len(text), 76))


def planted(text: str, inside: str, part: float) -> tuple[bytes, int, int]:
    """`inside` at the end of a line of `text`, that part of it from its beginning; its first byte and the one after."""
    at = text.rfind("\n", 0, int(part * len(text))) + 1
    before = text[:at].encode()
    return before + inside.encode() + text[at:].encode(), len(before), len(before) + len(inside.encode())


def overlap(one: tuple[int, int], other: tuple[int, int]) -> float:
    """Of two ranges what they share, as a part of what either has."""
    shared = max(0, min(one[1], other[1]) - max(one[0], other[0]))
    return shared / (one[1] - one[0] + other[1] - other[0] - shared)
