"""Ranges of tokens, as people write them: `2.0M:2.5M`, several with commas between."""

from gptjobs.errors import UsageError

Range = tuple[int, int]
"""the first token, and the one after the last"""


def between(text: str) -> Range:
    """What `2.0M:2.5M` means; raises UsageError for what means nothing."""
    first, colon, last = text.partition(":")
    try:
        found = _count(first), _count(last)
    except (ValueError, OverflowError):
        found = (0, 0)
    if not colon or not 0 <= found[0] < found[1]:
        raise UsageError(f"{text} is no range of tokens", hint="2.0M:2.5M, or 2000000:2500000")
    return found


def several(text: str) -> list[Range]:
    """By commas, in order; none for an empty text."""
    return sorted(between(each) for each in text.split(",") if text)


def fault(text: str) -> str | None:
    """What is wrong with the text of several ranges."""
    try:
        several(text)
    except UsageError as error:
        return error.message
    return None


def _count(text: str) -> int:
    """Of `2.5M`, `300k`, `1e6`; raises ValueError, or OverflowError."""
    scale = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}.get(text.strip()[-1:].lower())
    return int(float(text.strip()[:-1]) * scale) if scale else int(float(text))
