"""A job's curves as a browser draws them: over steps, tokens or time, thinned to what a screen can show.

Thinned as M4 does (Jugel, Jerzak, Hackenbroich, Markl: M4: A Visualization-Oriented Time Series Data Aggregation,
VLDB 2014): of each of a few hundred buckets the first, the last, the lowest and the highest value stay, so that the
line looks as if all points were there, and no spike is lost.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from gptjobs import checkpoint
from gptjobs.history import History, Line
from gptjobs.layout import Layout

SERIES = ("train_loss", "val_loss", "learning_rate", "grad_norm", "tokens_per_s")
AXES = ("step", "tokens", "time")
BUCKETS = 400
KEPT = 8
"""histories of jobs: as many as are compared at once"""

Curve = dict[str, list[float | None]]
"""`x`, which never falls, and each of SERIES"""


class Curves:
    """Of the jobs that were last looked at; a look reads what their files grew by."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._histories: OrderedDict[str, History] = OrderedDict()
        self._lock = Lock()

    def of(self, job: str, axis: str) -> dict[str, Any]:
        """The curve and what is marked on it."""
        with self._lock:
            history = self._histories.pop(job, None) or History(self._layout, job)
            self._histories[job] = history
            while len(self._histories) > KEPT:
                self._histories.popitem(last=False)
            history.read()
            metrics, events = history.metrics, history.events
        xs = places(metrics, axis)
        counts = dict(checkpoint.lineage(self._layout, job))
        return {"curve": thinned(metrics, xs), "marks": marks(metrics, xs, events, counts)}


def places(metrics: Sequence[Line], axis: str) -> list[float]:
    """Where each line stands. Time is that since the first line, in seconds; clocks of several hosts may differ, so
    it stands still where it would go back."""
    if axis != "time":
        return [each[axis] for each in metrics]
    found: list[float] = []
    for each in metrics:
        seconds = each.get("time")
        before = found[-1] if found else 0.0
        found.append(max(before, seconds) if isinstance(seconds, int | float) else before)
    return [round(each - found[0], 3) for each in found]


def thinned(metrics: Sequence[Line], xs: Sequence[float], buckets: int = BUCKETS) -> Curve:
    """The lines that are seen; all where they are few."""
    columns = {name: [each[name] for each in metrics] for name in SERIES}
    if len(xs) > 4 * buckets:
        seen = sorted({place for values in columns.values() for place in _seen(xs, values, buckets)})
    else:
        seen = list(range(len(xs)))
    return {"x": [xs[place] for place in seen]} | {
        name: [values[place] for place in seen] for name, values in columns.items()
    }


def _seen(xs: Sequence[float], values: Sequence[float | None], buckets: int) -> list[int]:
    """Places of the first, last, lowest and highest value of each bucket; the buckets are equally wide."""
    first_x, width = xs[0], (xs[-1] - xs[0]) / buckets or 1.0
    found: dict[int, list[int]] = {}
    for place, value in enumerate(values):
        if value is None:
            continue
        bucket = min(buckets - 1, int((xs[place] - first_x) / width))
        four = found.setdefault(bucket, [place, place, place, place])
        four[1] = place
        lowest, highest = values[four[2]], values[four[3]]
        if lowest is not None and value < lowest:
            four[2] = place
        if highest is not None and value > highest:
            four[3] = place
    return [place for four in found.values() for place in four]


def marks(
    metrics: Sequence[Line], xs: Sequence[float], events: Sequence[Line], counts: Mapping[int, float]
) -> list[dict[str, Any]]:
    """Alerts, checkpoints and later attempts of the branch that counts, in the order of their steps."""
    steps = [each["step"] for each in metrics]
    found = []
    for each in events:
        step, token = each.get("step"), each["token"]
        words = _words(each)
        if words is None or step is None or step > counts.get(token, -1) or not steps:
            continue
        place = min(len(steps) - 1, bisect_left(steps, step))
        found.append({"kind": each["kind"], "step": step, "x": xs[place], "words": words})
    return sorted(found, key=lambda each: each["step"])


def _words(event: Line) -> str | None:
    """None for what is not marked."""
    if event["kind"] == "alert":
        return f"{event['name']} at step {event['step']}: {event['reason']}"
    if event["kind"] == "checkpoint":
        loss = event.get("val_loss")
        return f"checkpoint of step {event['step']}" + ("" if loss is None else f", validation loss {loss:.4f}")
    if event["kind"] == "attempt" and event["start"] is not None:
        return f"attempt on {event['worker']} ({event['device']}) from step {event['step']}"
    return None
