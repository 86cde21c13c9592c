"""`python -m bench.odd ROOT FILE…`: what is odd, planted in texts, and how much of it `gptjobs data inspect` names.

Of each kind ranges of 10, 30 and 100 windows, at several places, in each text by each encoding that the storage root
has. Prints the least and the mean overlap (what two ranges share, as a part of what either has), in bytes.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gptjobs.config import BYTES
from gptjobs.data import encoding as encodings
from gptjobs.data import tokens
from gptjobs.data.inspect import WINDOW, Inspection, inspect
from gptjobs.layout import Layout, dataset_name
from tests.odd_text import overlap, planted, poison

KINDS = ("one line", "one byte", "random bytes", "printable", "base64", "hexadecimal", "Cyrillic", "copied")
PLACES = {10: (0.0, 0.37, 0.71, 1.0), 30: (0.37, 0.85), 100: (0.37, 0.85)}
"""parts of the text, by the windows that are planted there"""
MOST = 0.25
"""part of the text that may be odd: the median must be that of the rest"""


def main() -> None:
    layout = Layout(Path(sys.argv[1]))
    layout.make()
    names = [BYTES, encodings.NAME] if encodings.file(layout).is_file() else [BYTES]
    print("| text | encoding | kind | planted | least overlap | mean overlap | named first |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for file in map(Path, sys.argv[2:]):
        text = file.read_text()
        for name in names:
            found, per_token, seconds = _inspected(layout, text.encode(), name)
            for kind in KINDS:
                tried = list(_tried(layout, text, name, kind, per_token))
                shares = [share for share, _ in tried]
                first = sum(is_first for _, is_first in tried)
                told = f"{len(tried)} | {min(shares):.2f} | {sum(shares) / len(shares):.2f} | {first}"
                print(f"| {file.name} | {name} | {kind} | {told} |", flush=True)
            count = f"{found.token_count:,} tokens, {len(found.anomalies)} odd ranges as it is, {seconds:.1f} s"
            print(f"{file.name}, {name}: {count}", file=sys.stderr)


def _tried(layout: Layout, text: str, name: str, kind: str, per_token: float) -> Iterator[tuple[float, bool]]:
    """Of each range that was planted the overlap with the one that fits best, and whether that is the worst."""
    for windows, places in PLACES.items():
        size = int(windows * WINDOW * per_token)
        for part in places if size < MOST * len(text) else ():
            if kind == "copied" and part == 0:
                continue  # what is named is the later one of the two
            inside = text[:size] if kind == "copied" else poison(kind, size)
            content, first, last = planted(text, inside, part)
            found, _, _ = _inspected(layout, content, name)
            shares = [overlap((each.first_byte, each.last_byte), (first, last)) for each in found.anomalies] or [0.0]
            yield max(shares), shares.index(max(shares)) == 0 and max(shares) > 0


def _inspected(layout: Layout, content: bytes, name: str) -> tuple[Inspection, float, float]:
    """What is found, the bytes a token has, and the seconds it took once encoded."""
    source = layout.root / "sources" / "odd.md"
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(content)
    digest = tokens.digest_of(source)
    tokens.prepare(layout, source, digest, name)
    file = layout.token_file(dataset_name(source.name), digest, name)
    began = time.monotonic()
    found = inspect(layout, source, file, name)
    seconds = time.monotonic() - began
    shutil.rmtree(file.parent)
    return found, len(content) / found.token_count, seconds


if __name__ == "__main__":
    main()
