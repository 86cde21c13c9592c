"""What rules ask of a case."""

import statistics
from collections.abc import Sequence

from gptjobs.case import Case, Point
from gptjobs.config import HELD_OUT_PART, ModelConfig, TrainConfig

STANDS = 0.01
"""of the loss, by which it must fall over the last third of the tokens; else it stands still"""
FEW_LINES = 8
"""below which nothing is said about a course"""


def losses_of(points: Sequence[Point]) -> list[float]:
    """Of training, else of validation."""
    train = [each.train_loss for each in points if each.train_loss is not None]
    validation = [each.val_loss for each in points if each.val_loss is not None]
    return train if len(train) >= len(validation) else validation


def end_loss(points: Sequence[Point]) -> float | None:
    losses = losses_of(points)
    return statistics.median(losses[-max(3, len(losses) // 10) :]) if losses else None


def stands_still(case: Case) -> tuple[float, float] | None:
    """The losses a third of the way before the end and at the end, where they differ by less than STANDS."""
    losses = losses_of(case.points)
    if len(losses) < FEW_LINES:
        return None
    third, tenth = max(1, len(losses) // 3), max(3, len(losses) // 10)
    before = statistics.median(losses[-third - tenth : -third] or losses[:1])
    after = statistics.median(losses[-tenth:])
    return (before, after) if after > (1 - STANDS) * before else None


def noise_scale(case: Case) -> float | None:
    """In windows; None where no line was measured, or the mean gradient is lost in the noise."""
    pairs = [
        (each.grad_norm, each.micro_norm, each.micro_windows)
        for each in case.points[len(case.points) // 2 :]
        if each.grad_norm and each.micro_norm and each.micro_windows
    ]
    if len(pairs) < FEW_LINES or case.batch_size is None:
        return None
    large = case.batch_size
    squares = [
        (
            (large * norm**2 - small * micro**2) / (large - small),
            (micro**2 - norm**2) / (1 / small - 1 / large),
        )
        for norm, micro, small in pairs
    ]
    gradient, noise = (statistics.mean(each[place] for each in squares) for place in (0, 1))
    return noise / gradient if gradient > 0 and noise > 0 else None


def is_own(case: Case, point: Point) -> bool:
    return case.plan is None or point.job == case.plan.job


def train_of(case: Case) -> TrainConfig | None:
    return case.plan.settled.train if case.plan else None


def highest_rate(case: Case) -> float | None:
    rates = [each.learning_rate for each in case.points if each.learning_rate is not None]
    rates += [each["learning_rate"] for rise in case.rises for each in rise.steps if each["step"] <= rise.since]
    return max(rates, default=None)


def epochs_seen(case: Case) -> float | None:
    if case.text is None or case.points[-1].tokens is None:
        return None
    return case.points[-1].tokens / (case.text.tokens * (HELD_OUT_PART - 1) / HELD_OUT_PART)


def parameters(model: ModelConfig) -> int:
    """Without biases and norms, which are a thousandth."""
    tables = (model.vocab_size * (1 if model.tied else 2) + model.n_positions) * model.n_embd
    return tables + 12 * model.n_layer * model.n_embd**2
