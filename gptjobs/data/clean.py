"""A copy of a source without the lines of what is odd in it, and a report of what went and why."""

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from gptjobs import durable
from gptjobs.data.inspect import Anomaly, Inspection
from gptjobs.data.tokens import Advance
from gptjobs.errors import Refused

DROPPED = ("no-text", "noise", "repetition")
"""kinds that are surely no text to learn from; a foreign language, a copy or a long line may be wanted"""
_LINE_BYTES = 1 << 16
"""how far an end of a line is looked for; in longer lines it is cut between two characters"""
_READ_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Whole lines that go: bytes `first_byte` to before `last_byte`. `tokens` is about how many these are."""

    first_byte: int
    last_byte: int
    first_line: int
    last_line: int
    tokens: int
    score: float
    kinds: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def size(self) -> int:
        return self.last_byte - self.first_byte


def cuts(source: Path, inspection: Inspection, kinds: Collection[str]) -> list[Cut]:
    """What goes where anomalies of one of these kinds do, in the source's order."""
    chosen = [each for each in inspection.anomalies if not set(kinds).isdisjoint(each.kinds)]
    found: list[Cut] = []
    with source.open("rb") as file:
        for each in sorted((_cut(file.fileno(), anomaly) for anomaly in chosen), key=lambda cut: cut.first_byte):
            if found and each.first_byte < found[-1].last_byte:
                found[-1] = _together(found[-1], each)
            else:
                found.append(each)
    return found


def _cut(file: int, anomaly: Anomaly) -> Cut:
    """All lines that it has a part of."""
    first, last = _line_begin(file, anomaly.first_byte), _line_end(file, anomaly.last_byte)
    tokens = (anomaly.last - anomaly.first) * (last - first) / (anomaly.last_byte - anomaly.first_byte)
    return Cut(
        first_byte=first,
        last_byte=last,
        first_line=anomaly.first_line,
        last_line=anomaly.last_line,
        tokens=round(tokens),
        score=anomaly.score,
        kinds=anomaly.kinds,
        reasons=anomaly.reasons,
    )


def _together(one: Cut, other: Cut) -> Cut:
    shared = max(0, min(one.last_byte, other.last_byte) - other.first_byte)
    return replace(
        one,
        last_byte=max(one.last_byte, other.last_byte),
        last_line=max(one.last_line, other.last_line),
        tokens=one.tokens + round(other.tokens * (1 - shared / other.size)),
        score=max(one.score, other.score),
        kinds=one.kinds + other.kinds,
        reasons=one.reasons + other.reasons,
    )


def _line_begin(file: int, byte: int) -> int:
    start = max(0, byte - _LINE_BYTES)
    before = os.pread(file, byte - start, start)
    at = before.rfind(b"\n")
    if at < 0 and start > 0:
        return _between_characters(file, byte, -1)
    return start + at + 1


def _line_end(file: int, byte: int) -> int:
    after = os.pread(file, _LINE_BYTES, byte - 1)
    at = after.find(b"\n")
    if at >= 0:
        return byte + at
    if len(after) < _LINE_BYTES:
        return byte - 1 + len(after)
    return _between_characters(file, byte, 1)


def _between_characters(file: int, byte: int, step: int) -> int:
    while os.pread(file, 1, byte)[0] & 0xC0 == 0x80:
        byte += step
    return byte


def report_of(out: Path) -> Path:
    return out.with_name(f"{out.stem}.report.md")


def check_out(out: Path) -> None:
    """Raise Refused where the copy or its report would be written over something."""
    for each in (out, report_of(out)):
        if each.exists():
            raise Refused(f"{each} is there already", hint="--out with another name, or move it away")


def write(source: Path, digest: str, out: Path, gone: Sequence[Cut], report: str, advance: Advance) -> None:
    """Write the copy and its report, each whole, over nothing. Raises Refused where the source is not what was
    inspected, whose SHA-256 is `digest`."""
    beside = durable.temporary(out)
    sha256 = hashlib.sha256()
    try:
        with beside.open("xb") as copy:
            for piece, stays in _pieces(source, gone):
                sha256.update(piece)
                if stays:
                    copy.write(piece)
                advance(len(piece))
            copy.flush()
            os.fsync(copy.fileno())
        if sha256.hexdigest() != digest:
            raise Refused(f"{source} has changed since it was inspected", hint="the same command again")
        durable.create(report_of(out), report.encode())
        durable.place(beside, out)
    finally:
        beside.unlink(missing_ok=True)


def _pieces(source: Path, gone: Sequence[Cut]) -> Iterator[tuple[bytes, bool]]:
    """All of the source, each piece with whether it stays."""
    with source.open("rb") as file:
        for cut in gone:
            yield from ((piece, True) for piece in _until(file, cut.first_byte))
            yield from ((piece, False) for piece in _until(file, cut.last_byte))
        while piece := file.read(_READ_BYTES):
            yield piece, True


def _until(file: BinaryIO, end: int) -> Iterator[bytes]:
    while piece := file.read(min(_READ_BYTES, end - file.tell())):
        yield piece


def as_markdown(source: Path, digest: str, inspection: Inspection, gone: Sequence[Cut], size: int) -> str:
    """The report."""
    tokens = sum(each.tokens for each in gone)
    lines = [
        f"# What was left out of {source.name}",
        "",
        f"- SHA-256 of {source.name}: {digest}",
        f"- before: {size:,} bytes, {inspection.token_count:,} tokens",
        f"- left out: {sum(each.size for each in gone):,} bytes, about {tokens:,} tokens, in {len(gone)} ranges",
        f"- after: {size - sum(each.size for each in gone):,} bytes, about {inspection.token_count - tokens:,} tokens",
        "",
        "| bytes | lines | tokens, about | score | why |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    lines += [
        f"| {each.first_byte:,} to {each.last_byte:,} | {each.first_line:,} to {each.last_line:,} "
        f"| {each.tokens:,} | {each.score:.1f} | {'; '.join(each.reasons)} |"
        for each in gone
    ]
    return "\n".join(lines) + "\n"
