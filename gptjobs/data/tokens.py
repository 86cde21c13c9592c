"""A source's tokens on disk: encoded once, streamed, read by every job on that data.

`shared_data/tokens/<dataset>-<digest>/<encoding>.bin` holds uint16 tokens, little-endian, to be mapped into
memory; `.offsets` the byte offset in the source of every OFFSET_EVERY-th token; `.json`, written last, the
manifest. Two hosts may encode at once: both make the same files, and the first to finish places them.
"""

import hashlib
import json
import os
import re
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from gptjobs import checkpoint, durable
from gptjobs.config import known
from gptjobs.data import encoding as encodings
from gptjobs.errors import NotFound, Refused
from gptjobs.layout import Layout, dataset_name

SCHEMA = 1
OFFSET_EVERY = 4096
"""tokens"""
PIECE_BYTES = 1 << 20
_PIECES_AT_ONCE = 8
_LINE_END = re.compile(rb"(?<=\S)[\r\n]")

Advance = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class TokensManifest:
    source: str
    """the name it had when it was encoded"""
    source_sha256: str
    source_bytes: int
    encoding: str
    token_count: int
    offset_every: int


def read_manifest(token_file: Path) -> TokensManifest | None:
    """The manifest of a token file, or None where it was never finished."""
    try:
        record = json.loads(token_file.with_suffix(".json").read_bytes())
    except FileNotFoundError:
        return None
    return TokensManifest(**known(TokensManifest.__dataclass_fields__, record))


def digest_of(source: Path, advance: Advance = lambda count: None) -> str:
    """The source's SHA-256. Raises NotFound without a file, Refused for an empty one."""
    _check_file(source)
    return checkpoint.sha256_of(source, advance)


def _check_file(source: Path) -> None:
    if not source.is_file():
        raise NotFound(f"there is no data file {source}", hint="--data FILE")
    if source.stat().st_size == 0:
        raise Refused(f"the data {source} is empty", hint="--data FILE with text in it")


def check_beginning(source: Path) -> None:
    """Raise Refused where the first piece of the source is no UTF-8 text, and as `digest_of` does."""
    _check_file(source)
    with source.open("rb") as file:
        next(split(file, source))


def prepare(
    layout: Layout, source: Path, digest: str, encoding: str, advance: Advance = lambda count: None
) -> TokensManifest:
    """Encode `source`, whose SHA-256 is `digest`, unless that was done. `advance` is told the bytes done.

    Raises Refused for what is no UTF-8 text, or where the source changed meanwhile.
    """
    final = layout.token_file(dataset_name(source.name), digest, encoding)
    done = read_manifest(final)
    if done is not None:
        return done
    encode = encodings.encoder(layout, encoding)
    for folder in (final.parent.parent, final.parent):
        durable.make_folder(folder)
        durable.sweep(folder)
    tokens_beside, offsets_beside = durable.temporary(final), durable.temporary(final.with_suffix(".offsets"))
    try:
        with tokens_beside.open("xb") as tokens, offsets_beside.open("xb") as offsets:
            found, token_count = _encode(source, encode, tokens, offsets, advance)
            for file in (tokens, offsets):
                file.flush()
                os.fsync(file.fileno())
        if found != digest:
            raise Refused(
                f"the data {source} has changed: its SHA-256 is not {digest[:12]}… as the job says",
                hint="submit the job again, or bring the old file back",
            )
        manifest = TokensManifest(
            source=source.name,
            source_sha256=digest,
            source_bytes=source.stat().st_size,
            encoding=final.stem,
            token_count=token_count,
            offset_every=OFFSET_EVERY,
        )
        _place_unless_there(offsets_beside, final.with_suffix(".offsets"))
        _place_unless_there(tokens_beside, final)
        durable.write(final.with_suffix(".json"), durable.to_json({"schema": SCHEMA, **asdict(manifest)}))
        for leftover in final.parent.glob(f".{final.stem}.*.tmp"):
            leftover.unlink(missing_ok=True)  # of encoders that were killed, or that come too late
        return manifest
    except FileNotFoundError:
        done = read_manifest(final)
        if done is None:
            raise
        return done  # another host finished first, and swept
    finally:
        tokens_beside.unlink(missing_ok=True)
        offsets_beside.unlink(missing_ok=True)


def _place_unless_there(beside: Path, path: Path) -> None:
    with suppress(FileExistsError):  # another host's, the same to the byte
        durable.place(beside, path)


def _encode(
    source: Path, encode: encodings.Encoder, tokens: BinaryIO, offsets: BinaryIO, advance: Advance
) -> tuple[str, int]:
    """Stream `source` into the two files; returns its SHA-256 and the number of tokens."""
    sha256, token_count, offset = hashlib.sha256(), 0, 0
    with source.open("rb") as file:
        pieces = split(file, source)
        while batch := list(islice(pieces, _PIECES_AT_ONCE)):
            for piece, encoded in zip(batch, encode(batch), strict=True):
                sha256.update(piece)
                marks = _marks(encoded.lengths, token_count, offset)
                offsets.write(_little_endian(marks))
                tokens.write(_little_endian(encoded.tokens))
                token_count += len(encoded.tokens)
                offset += len(piece)
                advance(len(piece))
    return sha256.hexdigest(), token_count


def _marks(lengths: Any, first_token: int, first_byte: int) -> "array[int]":
    """The byte offsets of those of these tokens whose number is a multiple of OFFSET_EVERY."""
    marks = array("Q")
    start, offset = 0, first_byte
    for index in range(-first_token % OFFSET_EVERY, len(lengths), OFFSET_EVERY):
        offset += sum(lengths[start:index])
        start = index
        marks.append(offset)
    return marks


def _little_endian(values: "array[int]") -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def split(file: BinaryIO, source: Path, size: int = PIECE_BYTES) -> Iterator[bytes]:
    """Cut text into pieces of about `size` bytes that encode to the same tokens as the whole.

    GPT-2's pattern never looks back, and no word spans a line's end: so a cut between a line's last character
    and its end changes nothing. Only text with no such place in twice `size` is cut elsewhere, between two
    characters. Raises Refused for what is no UTF-8 text.
    """
    offset, rest = 0, b""
    while True:
        chunk = file.read(size)
        text = rest + chunk
        cut = _place_to_cut(text, must=len(text) >= 2 * size) if chunk else len(text)
        if cut:
            _check_text(text[:cut], offset, source)
            yield text[:cut]
        offset, rest = offset + cut, text[cut:]
        if not chunk:
            return


def _place_to_cut(text: bytes, *, must: bool) -> int:
    """Where a line's end begins, after a character that is no white space; 0 where there is none."""
    for match in reversed(list(_LINE_END.finditer(text))):
        at = match.start()
        before = text[max(0, at - 4) : at].decode(errors="ignore")
        if before and not before[-1].isspace():
            return at
    if not must:
        return 0
    at = len(text) - 1
    while at > max(0, len(text) - 4) and text[at] & 0xC0 == 0x80:
        at -= 1
    return at


def _check_text(piece: bytes, offset: int, source: Path) -> None:
    zero = piece.find(b"\0")
    if zero >= 0:
        raise Refused(f"{source} is no text: byte {offset + zero} is zero", hint="--data takes a UTF-8 text file")
    try:
        piece.decode()
    except UnicodeDecodeError as error:
        raise Refused(
            f"{source} is no UTF-8 text: byte {offset + error.start} is 0x{piece[error.start]:02x}",
            hint="convert it: iconv -f latin1 -t utf-8",
        ) from None
