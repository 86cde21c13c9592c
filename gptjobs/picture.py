"""Pictures of jobs: losses and the learning rate over tokens, the axis on which jobs of different batch and block
sizes compare. And of a source: what is odd in it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptjobs import durable
from gptjobs.case import Case
from gptjobs.data.inspect import MEASURES, Inspection

Metrics = Sequence[Mapping[str, Any]]


@contextmanager
def _figure(path: Path, height: float = 4.5) -> Iterator[Any]:
    """One that is written as a PNG once it is drawn. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    beside = durable.temporary(path)
    figure.savefig(beside, format="png")
    beside.replace(path)


def draw(path: Path, jobs: Mapping[str, Metrics]) -> None:
    """Write a PNG of jobs' metrics, by the jobs' names. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.ticker import EngFormatter

    with _figure(path) as figure:
        losses, rates = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        for number, (name, metrics) in enumerate(jobs.items()):
            alone = len(jobs) == 1
            train, validation = f"C{number}", f"C{number + alone}"
            evaluated = [each for each in metrics if each["val_loss"] is not None]
            label = "train" if alone else None if evaluated else name
            losses.plot(*_over_tokens(metrics, "train_loss"), color=train, alpha=0.6, linewidth=1, label=label)
            if evaluated:
                label = f"{'validation' if alone else name}, context {evaluated[-1]['eval_context']}"
                losses.plot(*_over_tokens(evaluated, "val_loss"), "o-", color=validation, markersize=4, label=label)
            rates.plot(*_over_tokens(metrics, "learning_rate"), color=train, linewidth=1.2)
        losses.set(ylabel="loss (nats a token)", title=" · ".join(jobs))
        losses.legend(title=None if len(jobs) == 1 else "dots: validation, thin lines: train", title_fontsize="small")
        rates.set(xlabel="tokens trained on", ylabel="learning rate", ylim=(0, None))
        rates.xaxis.set_major_formatter(EngFormatter(sep=""))
        rates.yaxis.set_major_formatter("{x:.2g}")
        for axes in (losses, rates):
            axes.grid(alpha=0.3)
        figure.align_ylabels()


def draw_trials(path: Path, title: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Write a PNG of trials' validation losses over tokens, by their numbers; the better the end, the darker. The
    scale leaves out what is far worse than where the trials began."""
    from matplotlib import colormaps
    from matplotlib.ticker import EngFormatter

    ends = sorted((points[-1][1], name) for name, points in curves.items() if points)
    firsts = [points[0][1] for points in curves.values() if points]
    with _figure(path) as figure:
        axes = figure.subplots()
        for place, (_, name) in reversed(list(enumerate(ends))):
            shade = colormaps["viridis"](0.9 * place / max(1, len(ends) - 1))
            label = f"trial {name}" if place < _NAMED else None
            axes.plot(*zip(*curves[name], strict=True), "o-", color=shade, markersize=3, linewidth=1.2, label=label)
        top = max(*firsts, ends[len(ends) // 2][0], ends[0][0])
        low = min(loss for points in curves.values() for _, loss in points)
        axes.set(ylim=(low - 0.05 * (top - low), top + 0.1 * (top - low)) if top > low else None)
        axes.set(title=title, xlabel="tokens trained on", ylabel="validation loss (nats a token)")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], title="best first", fontsize="small")


def draw_parallel(path: Path, title: str, trials: Sequence[tuple[Mapping[str, Any], float]]) -> None:
    """Write a PNG of parallel coordinates: an axis for each hyperparameter, and the last for the validation loss; a
    line for each trial, the better the darker."""
    from matplotlib import colormaps

    names = list(dict.fromkeys(name for params, _ in trials for name in params))
    scales = [scale([params.get(name) for params, _ in trials]) for name in names]
    losses = sorted(loss for _, loss in trials)
    low, high = losses[0], losses[-1]
    with _figure(path) as figure:
        axes = figure.subplots()
        for params, loss in sorted(trials, key=lambda each: -each[1]):
            heights = [known[params.get(name)] for name, known in zip(names, scales, strict=True)]
            heights.append((loss - low) / (high - low) if high > low else 0.5)
            shade = colormaps["viridis"](0.9 * losses.index(loss) / max(1, len(losses) - 1))
            axes.plot(range(len(heights)), heights, color=shade, linewidth=1.2)
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
        for place, known in enumerate(scales):
            shown = list(known.items())
            for value, height in shown[:: max(1, len(shown) // _TICKS)]:
                axes.annotate(tick(value), (place, height), fontsize="small", ha="right", va="center", xytext=(-4, 0),
                              textcoords="offset points", bbox=box)  # fmt: skip
        for height, loss in ((0.0, low), (1.0, high)):
            axes.annotate(f"{loss:.4f}", (len(names), height), fontsize="small", va="center", xytext=(4, 0),
                          textcoords="offset points")  # fmt: skip
        axes.set(title=title, xlim=(-0.4, len(names) + 0.3), yticks=[])
        axes.set_xticks(range(len(names) + 1), [*names, "validation loss"])
        for place in range(len(names) + 1):
            axes.axvline(place, color="0.6", linewidth=0.8)
        for side in ("left", "right", "top", "bottom"):
            axes.spines[side].set_visible(False)


def draw_case(path: Path, case: Case) -> None:
    """Write a PNG of what a diagnosis is made from: losses, learning rate, gradient norm and speed over steps; spikes
    shaded, with the losses of their flight records. Raises ModuleNotFoundError without matplotlib."""
    panels = [("learning_rate", "learning rate"), ("grad_norm", "gradient norm"), ("tokens_per_s", "tokens/s")]
    panels = [each for each in panels if any(getattr(point, each[0]) is not None for point in case.points)]
    with _figure(path, 3.2 + 1.3 * len(panels)) as figure:
        rows = figure.subplots(1 + len(panels), sharex=True, squeeze=False, height_ratios=[2.5, *([1] * len(panels))])
        losses, others = rows[0, 0], rows[1:, 0]
        losses.plot(*_over_steps(case, "train_loss"), color="C0", linewidth=1, label="train")
        if any(point.val_loss is not None for point in case.points):
            losses.plot(*_over_steps(case, "val_loss"), "o-", color="C1", markersize=3, linewidth=1, label="validation")
        for rise in case.rises:
            steps = [(each["step"], each["loss"]) for each in rise.steps if each["loss"] is not None]
            if steps:
                label = "flight record" if rise is case.rises[0] else None
                losses.plot(*zip(*steps, strict=True), color="C3", linewidth=0.7, alpha=0.8, label=label)
        if case.text is not None:
            losses.axhline(case.text.unigram, color="0.4", linestyle=":", linewidth=1)
            losses.annotate(
                "entropy of the tokens' frequencies", (1, case.text.unigram), fontsize="x-small", ha="right",
                va="bottom", xycoords=("axes fraction", "data"), color="0.4",
            )  # fmt: skip
        losses.set(ylabel="loss (nats a token)", title=case.name)
        losses.legend(loc="upper right", fontsize="small")
        for axes, (name, label) in zip(others, panels, strict=True):
            axes.plot(*_over_steps(case, name), color="C2", linewidth=1)
            axes.set(ylabel=label)
        for axes in rows[:, 0]:
            for rise in case.rises:
                axes.axvspan(rise.since, max(rise.step, rise.since + 1), color="C3", alpha=0.2, linewidth=0)
            axes.grid(alpha=0.3)
        rows[-1, 0].set(xlabel="step")
        figure.align_ylabels()


def _over_steps(case: Case, name: str) -> tuple[list[int], list[float]]:
    """Steps, and the values over them, of the points that have one."""
    points = [each for each in case.points if getattr(each, name) is not None]
    return [each.step for each in points], [getattr(each, name) for each in points]


def draw_inspection(path: Path, title: str, inspection: Inspection) -> None:
    """Write a PNG of a source's scores: a panel for each measure, over the tokens; anomalies shaded. Raises
    ModuleNotFoundError without matplotlib."""
    from matplotlib.ticker import EngFormatter

    step = inspection.window * inspection.every
    with _figure(path, 1.0 + 1.1 * len(inspection.scores)) as figure:
        panels = figure.subplots(len(inspection.scores), sharex=True)
        for axes, (name, scores) in zip(panels, inspection.scores.items(), strict=True):
            places = [min((place + 0.5) * step, inspection.token_count) for place in range(len(scores))]
            axes.plot(places, scores, color="C0", linewidth=0.8)
            for anomaly in inspection.anomalies:
                first, last = _wide_enough(anomaly.first, anomaly.last, inspection.token_count)
                axes.axvspan(first, last, color="C3", alpha=0.25, linewidth=0)
            axes.set_title(MEASURES[name], loc="left", fontsize="small", pad=3)
            axes.set(xlim=(0, inspection.token_count))
            if name == "line":
                axes.set_yscale("log")
            elif name not in ("tokens", "byte_pairs", "loss"):
                axes.set(ylim=(0, max(0.05, 1.1 * max(scores))))
            axes.tick_params(labelsize="small")
            axes.grid(alpha=0.3)
        figure.suptitle(title, fontsize="medium")
        panels[-1].set(xlabel=f"tokens; a point for each {step:,}, shaded: odd ranges")
        panels[-1].xaxis.set_major_formatter(EngFormatter(sep=""))


def _wide_enough(first: int, last: int, token_count: int) -> tuple[float, float]:
    """A range that is narrower than can be seen, wider."""
    more = max(0.0, _SEEN * token_count - (last - first)) / 2
    return first - more, last + more


_SEEN = 0.003
"""of an axis: what is seen as a stripe"""
_NAMED = 10
"""trials in a legend, at most"""
_TICKS = 12
"""values written at an axis, about"""


def scale(values: Sequence[Any]) -> dict[Any, float]:
    """Where each value stands on its axis, from 0 to 1, the lowest first: numbers by their size, or by their logarithm
    where they span more than a decade; others at equal distances, and what a trial left as it was below them all."""
    known = sorted({each for each in values if each is not None}, key=lambda each: (isinstance(each, str), each))
    found: dict[Any, float] = {None: -0.08} if None in values else {}
    if known and all(isinstance(each, int | float) and not isinstance(each, bool) for each in known):
        spans = known[0] > 0 and known[-1] / known[0] >= 10
        sizes = [math.log(each) if spans else float(each) for each in known]
        width = sizes[-1] - sizes[0]
        return found | {
            each: (size - sizes[0]) / width if width else 0.5 for each, size in zip(known, sizes, strict=True)
        }
    return found | {each: place / max(1, len(known) - 1) for place, each in enumerate(known)}


def tick(value: Any) -> str:
    return "as it was" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _over_tokens(metrics: Metrics, name: str) -> tuple[list[float], list[float]]:
    """Tokens, and the values over them; what was no number leaves a gap."""
    values = [math.nan if each[name] is None else each[name] for each in metrics]
    return [each["tokens"] for each in metrics], values
