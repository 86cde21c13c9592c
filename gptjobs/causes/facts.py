"""What rules ask of a case."""

import statistics
from collections.abc import Sequence

from gptjobs.case import Case, Point, losses_of
from gptjobs.config import HELD_OUT_PART, ModelConfig, TrainConfig
from gptjobs.plateau import FEW_LINES, losses_stand_still

SMOOTH_LINES = 5
"""whose median is a loss, as single lines are noisy"""


def end_loss(points: Sequence[Point]) -> float | None:
    losses = [loss for _, loss in losses_of(points)]
    return statistics.median(losses[-max(3, len(losses) // 10) :]) if losses else None


def lowest_loss(points: Sequence[Point]) -> float | None:
    """Of medians of SMOOTH_LINES lines."""
    losses = [loss for _, loss in losses_of(points)]
    ends = range(min(SMOOTH_LINES, len(losses)) or 1, len(losses) + 1)
    return min((statistics.median(losses[max(0, end - SMOOTH_LINES) : end]) for end in ends), default=None)


def stands_still(case: Case) -> tuple[float, float] | None:
    """The losses before the last third of the lines and at the end, where they differ by less than STANDS; None also
    of a loss that rises."""
    return losses_stand_still([loss for _, loss in losses_of(case.points)])


def own_points(case: Case) -> list[Point]:
    """Without those of the jobs before it."""
    return [each for each in case.points if case.plan is None or each.job == case.plan.job]


def noise_scale(case: Case) -> float | None:
    """In windows, of the second half of the job; None where no line was measured, or the mean gradient is lost in the
    noise."""
    own, large = own_points(case), case.batch_size
    pairs = [
        (each.grad_norm, each.micro_norm, each.micro_windows)
        for each in own[len(own) // 2 :]
        if large and each.grad_norm and each.micro_norm and each.micro_windows and each.micro_windows < large
    ]
    if large is None or len(pairs) < FEW_LINES:
        return None
    squares = [
        (
            (large * norm**2 - small * micro**2) / (large - small),
            (micro**2 - norm**2) / (1 / small - 1 / large),
        )
        for norm, micro, small in pairs
    ]
    gradient, noise = (statistics.mean(each[place] for each in squares) for place in (0, 1))
    return noise / gradient if gradient > 0 and noise > 0 else None


def train_of(case: Case) -> TrainConfig | None:
    return case.plan.settled.train if case.plan else None


def rates_of(case: Case) -> list[tuple[int, float]]:
    """Steps and learning rates of all lines that tell one above nought."""
    return [(each.step, each.learning_rate) for each in case.points if each.learning_rate]


def highest_rate(case: Case) -> float | None:
    rates = [rate for _, rate in rates_of(case)]
    rates += [each["learning_rate"] for rise in case.rises for each in rise.steps if each["step"] <= rise.since]
    return max(rates, default=None)


def tokens_to_train_on(case: Case) -> int | None:
    """Of the text, without what is held out."""
    return case.text.tokens - case.text.tokens // HELD_OUT_PART if case.text else None


def epochs_seen(case: Case) -> float | None:
    unique, seen = tokens_to_train_on(case), case.points[-1].tokens
    return seen / unique if unique and seen is not None else None


def parameters(model: ModelConfig) -> int:
    """Without biases and norms, which are a thousandth."""
    tables = (model.vocab_size * (1 if model.tied else 2) + model.n_positions) * model.n_embd
    return tables + 12 * model.n_layer * model.n_embd**2
