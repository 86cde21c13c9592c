"""What is odd about a source: its windows are scored, and ranges of odd ones named, the worst first.

The scores are worked out in a process of their own, `python -m worker.inspect`, as a client has no numpy.
"""

import importlib.util
import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptjobs import durable
from gptjobs.config import known
from gptjobs.data.tokens import Advance
from gptjobs.errors import GptjobsError, NotFound, Refused
from gptjobs.layout import Layout

SCHEMA = 1
WINDOW = 1024
"""tokens"""
PASSES = 2
"""over the source; a third is over the tokens, with --loss"""

MEASURES = {
    "compression": "compressed to (of its bytes)",
    "no_text": "no text (of its characters)",
    "repeated": "repeated n-grams (of its own)",
    "copied": "copied from earlier (of it)",
    "tokens": "unigram cross-entropy (nats a token)",
    "byte_pairs": "byte pairs' cross-entropy (nats a pair)",
    "script": "script's cross-entropy (nats a character)",
    "line": "longest line (bytes)",
    "loss": "the model's loss (nats a token)",
}
"""Of a window, each with what an axis of it is called; what they are is said in worker/measures.py."""

KINDS = {
    "no-text": "characters that no text has",
    "noise": "compresses far less than the rest",
    "repetition": "compresses far more than the rest, or repeats itself",
    "copied": "stands earlier in the file",
    "tokens": "tokens that are rare in the rest",
    "language": "pairs of bytes that are rare in the rest",
    "script": "letters of a script that is rare in the rest",
    "long-line": "lines far longer than the rest",
    "loss": "the model's loss is far from the rest",
}
"""Of anomalies, each with what it means."""


@dataclass(frozen=True, kw_only=True)
class Anomaly:
    """A range of neighbouring odd windows: tokens `first` to before `last`, likewise bytes; lines from 1 on, both
    within it. `score` is how far its oddest window is from the file's median, in robust noises (1.4826 times the median
    distance from it); `kinds` are of KINDS, the oddest first; `reasons` also tell what it is less odd in."""

    first: int
    last: int
    first_byte: int
    last_byte: int
    first_line: int
    last_line: int
    score: float
    kinds: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """`unigram` is the entropy of the tokens' frequencies in nats. `scores` has a list for each of MEASURES, with a
    number for every `every` windows: their oddest one's."""

    window: int
    token_count: int
    unigram: float
    every: int
    scores: dict[str, list[float]]
    anomalies: tuple[Anomaly, ...]


def inspect(
    layout: Layout,
    source: Path,
    token_file: Path,
    encoding: str,
    *,
    window: int | None = None,
    loss_of: str | None = None,
    advance: Advance = lambda count: None,
) -> Inspection:
    """Score all of a source whose tokens are there. Without `window` it is WINDOW, or more for a large file. `loss_of`
    is the name of a checkpoint on the root, whose loss is measured as well. `advance` is told the bytes done, PASSES
    times the source's in all, and once more with `loss_of`.

    Raises NotFound where numpy, or torch, is missing; Refused for a checkpoint that cannot be computed with.
    """
    needed = "torch" if loss_of else "numpy"
    if importlib.util.find_spec(needed) is None:
        raise NotFound(f"this needs {needed}, which is not installed here", hint="pip install 'gptjobs[worker]'")
    command = [sys.executable, "-m", "worker.inspect", str(layout.root), str(source), str(token_file), encoding]
    command += [f"--window={window}"] if window else []
    command += [f"--loss={loss_of}"] if loss_of else []
    answer: dict[str, Any] = {}
    # in a session of its own Ctrl-C does not reach it: it is ended here, without a word
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                answer = json.loads(line)
                advance(answer.get("done", 0))
        except BaseException:
            child.kill()
            raise
    return _read(answer, child.returncode)


def inspected(
    layout: Layout, source: Path, token_file: Path, encoding: str, advance: Advance = lambda count: None
) -> Inspection:
    """The inspection of a source, which is made once and then stands beside its tokens."""
    path = layout.inspection_file(token_file)
    with suppress(OSError, ValueError, KeyError, TypeError, GptjobsError):  # none, torn, or of another version
        return _read(json.loads(path.read_bytes()), 0)
    found = inspect(layout, source, token_file, encoding, advance=advance)
    with suppress(OSError):  # a full or read-only disk costs the next one some seconds
        durable.write(path, durable.to_json({"schema": SCHEMA, "inspection": asdict(found)}))
    return found


def _read(answer: dict[str, Any], code: int) -> Inspection:
    """Of a child's last line."""
    if "refused" in answer:
        raise Refused(answer["refused"], hint=answer["hint"])
    if "inspection" not in answer:
        raise GptjobsError(f"the inspection ended with exit code {code}", hint="what it said stands above")
    found = answer["inspection"]
    return Inspection(**{**known(Inspection.__dataclass_fields__, found), "anomalies": _anomalies(found["anomalies"])})


def _anomalies(records: list[dict[str, Any]]) -> tuple[Anomaly, ...]:
    lists = ("kinds", "reasons")
    return tuple(
        Anomaly(**{**known(Anomaly.__dataclass_fields__, each), **{name: tuple(each[name]) for name in lists}})
        for each in records
    )
