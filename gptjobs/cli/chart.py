"""Curves in a terminal: losses over tokens in braille dots with axes, and sparklines."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

Metrics = Sequence[Mapping[str, Any]]
Point = tuple[float, float]

TRAIN, VALIDATION, FAINT = "cyan", "bold yellow", "bright_black"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""the bits of a braille character, by row and column of its dots"""
_BRAILLE = 0x2800
_BLOCKS = "▁▂▃▄▅▆▇█"
_MARGIN = 7
"""columns for the labels of the losses"""
_FALL = 0.05
"""of the tokens: the steep fall at the start of a job leaves through the top, so that the rest has room"""
_FEW_POINTS = 40
"""have room, fall and all"""


@dataclass(frozen=True, kw_only=True)
class Window:
    """What of the plane a chart shows."""

    left: float
    right: float
    bottom: float
    top: float


def points(metrics: Metrics, name: str) -> list[Point]:
    return [(each["tokens"], each[name]) for each in metrics if each[name] is not None]


def window_of(jobs: Iterable[Metrics]) -> Window | None:
    """What shows the losses of all these jobs; None where there are none yet."""
    all_points = [point for each in jobs for name in ("train_loss", "val_loss") for point in points(each, name)]
    if not all_points:
        return None
    left, right = min(x for x, _ in all_points), max(x for x, _ in all_points)
    after_fall = left + (_FALL * (right - left) if len(all_points) > _FEW_POINTS else 0.0)
    bottom, top = min(y for _, y in all_points), max(y for x, y in all_points if x >= after_fall)
    room = max(0.02 * (top - bottom), 0.005)
    return Window(left=left, right=max(right, left + 1), bottom=bottom - room, top=top + room)


def losses(metrics: Metrics, window: Window, *, width: int, height: int) -> list[Text]:
    """`height` lines of at most `width` columns: a legend, the curves, the axis of tokens."""
    rows, columns = height - 3, max(width - _MARGIN - 1, 2)
    train, validation = points(metrics, "train_loss"), points(metrics, "val_loss")
    dots = _line(train, window, rows, columns)
    marks = {(row // 4, column // 2) for row, column in _place(validation, window, rows, columns)}
    labels = _labels(window, rows)
    lines = [_legend(metrics)]
    for row in range(rows):
        line = Text(f"{labels.get(row, ''):>{_MARGIN - 1}} {'┤' if row in labels else '│'}", style=FAINT)
        line.append("".join(_cell(dots.get((row, column))) for column in range(columns)), style=TRAIN)
        for column in (column for marked, column in marks if marked == row):
            at = _MARGIN + 1 + column
            line = Text.assemble(line[:at], ("●", VALIDATION), line[at + 1 :])
        lines.append(line)
    return [*lines, *_token_axis(window, columns)]


def _cell(bits: int | None) -> str:
    return " " if bits is None else chr(_BRAILLE + bits)


def _legend(metrics: Metrics) -> Text:
    contexts = sorted({each["eval_context"] for each in metrics if each["val_loss"] is not None})
    at = f" at context {', '.join(map(str, contexts))}" if contexts else ""
    return Text.assemble(
        ("loss over tokens", FAINT), "   ", ("⠒⠒ train", TRAIN), "   ", (f"● validation{at}", VALIDATION)
    )


def _place(where: Iterable[Point], window: Window, rows: int, columns: int) -> list[tuple[int, int]]:
    """The dots (row and column, from the top left) of the points that the window shows."""
    down = (rows * 4 - 1) / (window.top - window.bottom)
    across = (columns * 2 - 1) / (window.right - window.left)
    return [(round((window.top - y) * down), round((x - window.left) * across)) for x, y in where if y <= window.top]


def _line(where: Sequence[Point], window: Window, rows: int, columns: int) -> dict[tuple[int, int], int]:
    """The bits of the cells that a line through the points touches."""
    cells: dict[tuple[int, int], int] = defaultdict(int)
    placed = _place(where, window, rows, columns)
    for (row, column), (next_row, next_column) in zip(placed, placed[1:] or placed, strict=False):
        steps = max(abs(next_row - row), abs(next_column - column), 1)
        for step in range(steps + 1):
            y = row + round(step * (next_row - row) / steps)
            x = column + round(step * (next_column - column) / steps)
            cells[y // 4, x // 2] |= _DOTS[y % 4][x % 2]
    return cells


def _labels(window: Window, rows: int) -> dict[int, str]:
    """The losses at round numbers, by the row that has them."""
    ticks, decimals = _ticks(window.bottom, window.top, most=max(rows // 2, 3))
    return {
        row // 4: f"{tick:.{decimals}f}" for tick in ticks for row, _ in _place([(window.left, tick)], window, rows, 1)
    }


def _token_axis(window: Window, columns: int) -> list[Text]:
    ticks, _ = _ticks(window.left, window.right, most=max(columns // 14, 2))
    rule, labels = list("─" * columns), " " * (_MARGIN + 1)
    for tick in ticks:
        column = round((tick - window.left) * (columns - 1) / (window.right - window.left))
        label = _in_short(tick)
        start = min(_MARGIN + 1 + column - len(label) // 2, _MARGIN + 1 + columns - len(label))
        if start > len(labels.rstrip()):
            rule[column] = "┬"
            labels = labels[:start].ljust(start) + label
    return [Text(" " * _MARGIN + "└" + "".join(rule), style=FAINT), Text(labels, style=FAINT)]


def _ticks(low: float, high: float, *, most: int) -> tuple[list[float], int]:
    """At most so many round numbers, and the decimals that tell them apart."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [number * step for number in numbers], max(-math.floor(math.log10(step)), 1)


def _in_short(tokens: float) -> str:
    """`500k`, `1.2M`."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if tokens >= scale:
            return f"{tokens / scale:.4g}{unit}"
    return f"{tokens:.4g}"


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of all values in at most `width` blocks."""
    if not values or width < 1:
        return ""
    width = min(width, len(values))
    means = []
    for i in range(width):
        part = values[i * len(values) // width : (i + 1) * len(values) // width]
        means.append(sum(part) / len(part))
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)
