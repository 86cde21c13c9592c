"""`python -m worker.inspect ROOT SOURCE TOKENS ENCODING …`: score all windows of a source, for
`gptjobs.data.inspect.inspect`.

Prints JSON lines: what was done since the last, then the inspection, or why it is refused. The source is read twice:
once for what the whole file has, once to hold each window against that. What is kept of it does not grow with it.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptjobs import checkpoint
from gptjobs.data.inspect import WINDOW, Anomaly
from gptjobs.errors import GptjobsError, Refused
from gptjobs.layout import Layout
from worker import anomalies, measures, scripts
from worker.anomalies import LIMIT, SIDES, SUPPORT, Level, Range, Scores
from worker.measures import MEASURED, SYMBOLS, Counts, Whole, Window
from worker.stretches import Source

MOST_SHINGLES = 1 << 22
"""of a file that are kept"""
LEAST_SAMPLING = 16
MOST_SCORES = 1 << 14
"""of a measure that are told"""
_SCRIPT_WINDOWS = 64
"""of a range that are looked through for its script, at most"""


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.inspect")
    parser.add_argument("root", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("encoding")
    parser.add_argument("--window", type=int)
    parser.add_argument("--loss", help="a checkpoint's name, relative to the root")
    asked = parser.parse_args(words)
    try:
        _say(inspection=_inspect(asked))
    except GptjobsError as error:
        _say(refused=error.message, hint=error.hint)
        return error.exit_code
    except BrokenPipeError:
        return 130  # nobody listens any more
    except OSError as error:
        _say(refused=f"{asked.source} or its tokens cannot be read: {error.strerror}", hint=None)
        return Refused.exit_code
    return 0


def _say(**words: Any) -> None:
    print(json.dumps(words), flush=True)


def _inspect(asked: argparse.Namespace) -> dict[str, Any]:
    layout = Layout(asked.root)
    source = Source(layout, asked.source, asked.tokens, asked.encoding, asked.window, WINDOW)
    whole = _whole(source)
    scores = _scores(source, whole)
    if asked.loss:
        scores["loss"] = _losses(layout, asked.loss, asked.tokens, source, asked.source.stat().st_size)
    levels = {name: anomalies.level_of(name, values) for name, values in scores.items()}
    found = [_anomaly(each, scores, levels, source, whole) for each in anomalies.ranges(scores, levels)]
    every = -(-len(source.starts) // MOST_SCORES)
    return {
        "window": source.window,
        "token_count": source.token_count,
        "unigram": measures.entropy(whole.tokens),
        "every": every,
        "scores": {name: _thinned(values, levels[name], every) for name, values in scores.items()},
        "anomalies": [asdict(each) for each in found],
    }


def _whole(source: Source) -> Whole:
    """The first pass."""
    sampling = LEAST_SAMPLING
    while source.token_count > sampling * MOST_SHINGLES:
        sampling *= 2
    tokens, pairs = np.zeros(SYMBOLS, dtype=np.int64), np.zeros(SYMBOLS, dtype=np.int64)
    characters = np.zeros(len(scripts.SCRIPTS), dtype=np.int64)
    hashes, places = [], []
    for piece in source.pieces():
        tokens += np.bincount(piece.tokens, minlength=SYMBOLS)
        pairs += np.bincount(measures.byte_pairs(piece.text), minlength=SYMBOLS)
        characters += scripts.counts(piece.text)
        sampled, where = measures.shingles(piece.tokens, sampling)
        hashes.append(sampled)
        places.append(where + piece.first)
        _say(done=len(piece.text))
    each, first, count = np.unique(np.concatenate(hashes), return_index=True, return_counts=True)
    twice = count > 1
    return Whole(
        tokens=Counts(tokens),
        pairs=Counts(pairs),
        scripts=characters,
        copied=each[twice],
        copied_first=np.concatenate(places)[first[twice]],
        sampling=sampling,
    )


def _scores(source: Source, whole: Whole) -> dict[str, Scores]:
    """The second pass."""
    count = len(source.starts)
    scores = {name: np.zeros(count, dtype=np.float32) for name in MEASURED}
    bounds, ends, inner = np.zeros((count, 2), np.int64), np.full((count, 2), -1, np.int64), np.zeros(count, np.int64)

    def note(place: int, window: Window, byte: int) -> None:
        for name, measure in MEASURED.items():
            scores[name][place] = measure(window, whole)
        first, last, inner[place] = measures.line_ends(window.text)
        bounds[place] = byte, byte + len(window.text)
        if first >= 0:
            ends[place] = byte + first, byte + last

    for piece in source.pieces():
        byte = piece.first_byte
        for at in range(0, len(piece.tokens) - source.window + 1, source.window):
            size = int(piece.lengths[at : at + source.window].sum())
            text = piece.text[byte - piece.first_byte :][:size]
            note(
                (piece.first + at) // source.window,
                Window(piece.first + at, piece.tokens[at : at + source.window], text),
                byte,
            )
            byte += size
        _say(done=len(piece.text))
    if source.token_count % source.window:
        first = int(source.starts[-1])
        note(count - 1, Window(first, *source.stretch(first, source.token_count)), source.byte_of(first))
    scores["line"] = measures.longest_lines(bounds, ends, inner).astype(np.float32)
    return scores


def _losses(layout: Layout, name: str, file: Path, source: Source, size: int) -> Scores:
    """Of each window the mean of the losses of the model's own windows that begin in it, or of the one that it lies
    in."""
    found = checkpoint.read(layout, name)
    from worker.trainer.device import best_available, open_device
    from worker.trainer.losses import losses_of_windows
    from worker.trainer.state import load_model

    model = load_model(layout, found, open_device(best_available(), "float32"))
    block = found.manifest.settled.train.block_size
    sums, counts = np.zeros(len(source.starts)), np.zeros(len(source.starts))
    for place, losses in losses_of_windows(model, file, block):
        windows = np.minimum((place + np.arange(len(losses))) * block // source.window, len(sums) - 1)
        np.add.at(sums, windows, losses)
        np.add.at(counts, windows, 1)
        _say(done=len(losses) * block * size // source.token_count)
    known = np.flatnonzero(counts)
    # the window before that has one
    nearest = known[np.maximum(0, np.searchsorted(known, np.arange(len(sums)), side="right") - 1)]
    return (sums[nearest] / counts[nearest]).astype(np.float32)


def _anomaly(
    found: Range, scores: dict[str, Scores], levels: dict[str, Level], source: Source, whole: Whole
) -> Anomaly:
    starts, window = source.starts, source.window
    first, last = int(starts[found.first]), int(starts[found.last - 1]) + window
    if found.measure in MEASURED and found.last - found.first > 1:
        measure = MEASURED[found.measure]

        def of_window(start: int) -> float:
            return measure(Window(start, *source.stretch(start, start + window)), whole)

        edges = anomalies.ends(found, scores[found.measure], starts, window, of_window)
        first, last = edges if edges[0] < edges[1] else (first, last)
    told = _reasons(found, scores, levels)
    return Anomaly(
        first=first,
        last=last,
        first_byte=source.byte_of(first),
        last_byte=source.byte_of(last),
        first_line=source.line_of(first),
        last_line=source.line_of(last - 1),
        score=round(found.score, 1),
        kinds=tuple(dict.fromkeys(each.kind for each in told if each.makes_kind)),
        reasons=tuple(_words(each, found, source, whole) for each in told),
    )


@dataclass(frozen=True, kw_only=True)
class Reason:
    """In what a range is odd: `value` and `strength` are the medians of its windows."""

    measure: str
    kind: str
    value: float
    usual: float
    strength: float
    is_main: bool

    @property
    def makes_kind(self) -> bool:
        """Whether the range is of this kind, and not only odd in this as well. Noise is less far from text in how it
        compresses than in its tokens."""
        return self.is_main or self.strength >= (SUPPORT if self.kind == "noise" else LIMIT)


def _reasons(found: Range, scores: dict[str, Scores], levels: dict[str, Level]) -> list[Reason]:
    """The oddest first."""
    told = []
    for name, side, kind in SIDES:
        if name in scores:
            here, level = scores[name][found.first : found.last], levels[name]
            strength = float(np.median(side * level.strengths(here)))
            is_main = name == found.measure and side == found.side
            if strength >= SUPPORT or is_main:
                value = float(np.median(here))
                told.append(
                    Reason(measure=name, kind=kind, value=value, usual=level.median, strength=strength, is_main=is_main)
                )
    return sorted(told, key=lambda each: -each.strength)


def _words(reason: Reason, found: Range, source: Source, whole: Whole) -> str:
    here, median = reason.value, reason.usual
    if reason.measure == "script":
        main, other = _script(whole.scripts), _script(_characters(found, source), whole.scripts)
        return f"script changes from {main} to {other}"
    return {
        "compression": f"compresses to {here:.0%} (median {median:.0%})",
        "no_text": f"{here:.0%} of its characters are no text: controls, or not decoded (median {median:.0%})",
        "repeated": f"{here:.0%} of its {measures.NGRAM}-grams repeat (median {median:.0%})",
        "copied": f"{here:.0%} of it stands earlier in the file (median {median:.0%})",
        "tokens": f"unigram cross-entropy {here:.1f} nats (median {median:.1f})",
        "byte_pairs": f"byte pairs {here:.1f} nats (median {median:.1f})",
        "line": f"a line of {here:,.0f} bytes (median {median:,.0f})",
        "loss": f"the model's loss {here:.2f} nats (median {median:.2f})",
    }[reason.measure]


def _characters(found: Range, source: Source) -> NDArray[np.int64]:
    places = range(found.first, found.last, -(-(found.last - found.first) // _SCRIPT_WINDOWS))
    counted = np.zeros(len(scripts.SCRIPTS), dtype=np.int64)
    for place in places:
        start = int(source.starts[place])
        counted += scripts.counts(source.stretch(start, start + source.window)[1])
    return counted


def _script(characters: NDArray[np.int64], everywhere: NDArray[np.int64] | None = None) -> str:
    """Which one most of the letters have; but for the script that is the most frequent everywhere."""
    letters = characters.copy()
    letters[: scripts.ANOTHER] = -1
    if everywhere is not None:
        letters[scripts.SCRIPTS.index(_script(everywhere))] = -1
    return scripts.SCRIPTS[int(letters.argmax())]


def _thinned(values: Scores, level: Level, every: int) -> list[float]:
    """Of every so many windows the number of the one that is farthest from the median."""
    groups = np.pad(values, (0, -len(values) % every), mode="edge").reshape(-1, every)
    oddest = np.abs(level.strengths(groups)).argmax(axis=1)
    return [round(float(each), 5) for each in groups[np.arange(len(groups)), oddest]]


if __name__ == "__main__":
    sys.exit(main())
