"""Pictures of jobs: losses and the learning rate over tokens, the axis on which jobs of different batch and block
sizes compare."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptjobs import durable

Metrics = Sequence[Mapping[str, Any]]


def draw(path: Path, jobs: Mapping[str, Metrics]) -> None:
    """Write a PNG of jobs' metrics, by the jobs' names. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
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
    beside = durable.temporary(path)
    figure.savefig(beside, format="png")
    beside.replace(path)


def _over_tokens(metrics: Metrics, name: str) -> tuple[list[float], list[float]]:
    """Tokens, and the values over them; what was no number leaves a gap."""
    values = [math.nan if each[name] is None else each[name] for each in metrics]
    return [each["tokens"] for each in metrics], values
