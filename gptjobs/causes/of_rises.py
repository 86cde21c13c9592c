"""Causes of a loss that rose, or fell at once: the schedule, the rate, the text, the optimizer."""

import math
import statistics
from collections.abc import Iterable

from gptjobs.case import Case, Odd, Rise
from gptjobs.causes.cause import PossibleCause
from gptjobs.causes.commands import (
    data_of,
    encoding_of,
    nice,
    replay_commands,
    resume_command,
    step_to_go_back_to,
    steps_left,
    train_command,
)
from gptjobs.causes.facts import FEW_LINES, highest_rate, train_of
from gptjobs.config import HELD_OUT_PART, TrainConfig
from gptjobs.diagnosis import RECENT_STEPS

RATE_ROSE = 1.2
"""times, within the steps before a spike: the schedule was raising the rate"""
BEFORE_STEPS = 100
"""before a spike, in which the rate and the gradient's norm are looked at"""
IN_ODD = 0.5
"""of a spike's windows lie in odd text: then that is the cause"""


def schedule(case: Case) -> Iterable[PossibleCause]:
    """A rise at a step where the schedule was raising the learning rate."""
    rises = [each for each in case.rises if not each.is_fall]
    if not rises:
        return
    first = min(rises, key=lambda each: each.since)
    rates = _rates_before(case, first)
    if len(rates) < 2 or rates[0][1] <= 0:
        return
    (from_step, low), (_, high) = min(rates, key=lambda each: each[1]), rates[-1]
    grew = high / low
    if grew < RATE_ROSE:
        return
    in_odd = _part_in_odd(case, first)
    healthy = _rate_at(case, step_to_go_back_to(case, first)) or low
    evidence = [
        f"{first.reason}",
        f"the learning rate rose {grew:.3g} times: {low:.3g} at step {from_step}, {high:.3g} at step {first.since}",
    ]
    if high >= 0.99 * (highest_rate(case) or 0.0):
        evidence.append("it was higher there than at any step before")
    if len(rises) > 1:
        evidence.append(f"the loss rose {len(rises)} times, each time under this schedule, on other text")
    if in_odd is not None:
        evidence.append(f"the text is not the cause: {in_odd:.0%} of the windows it had seen are odd")
    steps = max(100, steps_left(case, first))
    lower = f"--learning-rate {nice(healthy / 3)} --schedule cosine --steps {steps}"
    yield PossibleCause(
        name="schedule",
        title="the schedule raised the learning rate until training broke",
        strength=0.92 if not in_odd or in_odd < IN_ODD else 0.4,
        evidence=tuple(evidence),
        against=f"the same rise from {nice(healthy / 3)} down, on the same text",
        tests=(resume_command(case, lower, before=first.since), *replay_commands(case, first)),
    )


def rate_too_high(case: Case) -> Iterable[PossibleCause]:
    """A rise at a rate that is at its highest and was not just raised, or one rise after the other."""
    rises = [each for each in case.rises if not each.is_fall]
    if not rises:
        return
    first = min(rises, key=lambda each: each.since)
    rates, highest = _rates_before(case, first), highest_rate(case)
    if not rates or highest is None or rates[-1][1] < 0.5 * highest:
        return
    in_odd = _part_in_odd(case, first) or 0.0
    norms = _norms_before(case, first)
    evidence = [first.reason, f"the learning rate was {rates[-1][1]:.3g}, its highest is {highest:.3g}"]
    strength = 0.5
    if len(rises) > 1:
        strength += 0.2
        steps = ", ".join(str(each.since) for each in rises)
        evidence.append(f"it rose {len(rises)} times, at the steps {steps}, on other text each time")
    if norms and norms[1] > 1.5 * norms[0]:
        strength += 0.1
        evidence.append(f"the gradient's norm grew before it, from {norms[0]:.3g} to {norms[1]:.3g}")
    lower = f"--learning-rate {nice(rates[-1][1] / 3)} --steps {max(100, steps_left(case, first))}"
    yield PossibleCause(
        name="rate_too_high",
        title="the learning rate is too high",
        strength=strength if in_odd < IN_ODD else 0.3,
        evidence=tuple(evidence),
        against=f"the same rise at {nice(rates[-1][1] / 3)}",
        tests=(resume_command(case, lower, before=first.since), *replay_commands(case, first)),
    )


def odd_text(case: Case) -> Iterable[PossibleCause]:
    """A rise or fall while the windows lay in odd text."""
    by_range: dict[Odd, list[tuple[Rise, float]]] = {}
    for rise in case.rises:
        odd, part = _odd_of(case, rise)
        if odd is not None and part > 0:
            by_range.setdefault(odd, []).append((rise, part))
    for odd, seen in by_range.items():
        rise, part = max(seen, key=lambda each: each[1])
        text = case.text
        assert text is not None
        share = (odd.last - odd.first) / text.tokens
        if part < max(IN_ODD / 2, 2 * share):
            continue
        leaves_out = f"--skip-tokens {odd.first}:{odd.last} --steps {max(100, steps_left(case, rise))}"
        yield PossibleCause(
            name="data",
            title=f"the text: tokens {odd.first:,} to {odd.last:,} are not like the rest",
            strength=0.96 if part >= IN_ODD else 0.6,
            evidence=(
                rise.reason,
                f"{part:.0%} of the windows that it had seen lie in tokens {odd.first:,} to {odd.last:,}, which are "
                f"{share:.1%} of the text (line {odd.line:,} on)",
                f"there: {odd.why}",
                f"it begins: {odd.text}",
            ),
            against="the same rise where these tokens are left out",
            tests=(
                resume_command(case, leaves_out, before=rise.since),
                f"gptjobs data clean {data_of(case)}{encoding_of(case)} --out clean.txt --dry-run",
                *replay_commands(case, rise),
            ),
        )


def end_of_epoch(case: Case) -> Iterable[PossibleCause]:
    """A rise or fall where an epoch of the data ended."""
    if case.plan is None or case.text is None or case.tokens_a_step is None:
        return
    epoch = case.text.tokens * (HELD_OUT_PART - 1) // HELD_OUT_PART
    for rise in case.rises:
        if rise.windows is None or case.block_size is None:
            continue
        first = rise.windows[0] * case.block_size
        last = first + RECENT_STEPS * case.tokens_a_step
        if first // epoch == last // epoch or epoch < 50 * case.tokens_a_step:
            continue
        yield PossibleCause(
            name="epoch",
            title="an epoch of the data ended there",
            strength=0.5,
            evidence=(rise.reason, f"epoch {last // epoch} of the data ended at token {last // epoch * epoch:,} then"),
            against="the same rise at another seed, whose order has other text there",
            tests=(resume_command(case, "--seed 7 --steps 500", before=rise.since),),
        )


def of_a_log(case: Case) -> Iterable[PossibleCause]:
    """A rise in a log, which does not tell enough: where to look."""
    if case.plan is not None or not case.rises:
        return
    rise = case.rises[0]
    before = max((each.step for each in case.points if each.step < rise.since), default=0)
    evidence = [rise.reason, f"it began after step {before}, the last line without it"]
    if case.tokens_a_step is not None:
        first, last = before * case.tokens_a_step, rise.since * case.tokens_a_step
        evidence.append(f"these steps saw tokens {first:,} to {last:,}, counted from the start of training")
        if case.text is not None:
            odd = [each for each in case.text.odd if each.first < last and first < each.last]
            evidence += [f"odd there, if the text was read in order: line {each.line:,} on: {each.why}" for each in odd]
    yield PossibleCause(
        name="rise",
        title="something broke training there; the log does not tell what",
        strength=0.4,
        evidence=tuple(evidence),
        against="the same rise again, from the checkpoint before, with another order of the text",
        tests=(
            f"gptjobs data inspect {data_of(case)}{encoding_of(case)}",
            resume_command(case, "--learning-rate 1e-4 --steps 500"),
        ),
    )


def norm_first(case: Case) -> Iterable[PossibleCause]:
    """The gradient's norm grew before the loss did: Adam's second moments lag behind (Molybog et al. 2023)."""
    for rise in case.rises[:1]:
        norms = _norms_before(case, rise)
        if norms is None or norms[1] < 1.5 * norms[0]:
            continue
        yield PossibleCause(
            name="norm_first",
            title="the gradients grew before the loss did: the optimizer is losing its hold",
            strength=min(0.6, 0.3 + 0.1 * math.log2(norms[1] / norms[0])),
            evidence=(
                rise.reason,
                f"the gradient's norm was {norms[0]:.3g}, by its median, and {norms[1]:.3g} right before the rise",
            ),
            against="the same rise with Adam's moments begun anew",
            tests=(
                resume_command(case, "--optimizer rewarm --steps 500", before=rise.since),
                *replay_commands(case, rise),
            ),
        )


def short_warmup(case: Case) -> Iterable[PossibleCause]:
    """A rise, or gradients out of hand, in the first steps at full rate."""
    train = train_of(case)
    first = min((each.since for each in case.rises), default=0)
    if train is None or train.schedule_start or first > _soon(train):
        return
    own = [each for each in case.points if each.grad_norm is not None]
    early = [each.grad_norm or 0.0 for each in own if each.step <= _soon(train)]
    late = [each.grad_norm or 0.0 for each in own if each.step > _soon(train)]
    if len(early) < 2 or len(late) < FEW_LINES or max(early[1:]) < 5 * statistics.median(late):
        return
    yield PossibleCause(
        name="warmup",
        title="the warm-up is too short",
        strength=0.6 if case.rises else 0.35,
        evidence=(
            f"{train.warmup_steps} steps of warm-up; by step {_soon(train)} the gradient's norm had reached "
            f"{max(early[1:]):.3g}, later its median is {statistics.median(late):.3g}",
        ),
        against="the same gradients with a warm-up ten times as long",
        tests=(train_command(case, f"--warmup-steps {max(100, 10 * train.warmup_steps)}"),),
    )


def _soon(train: TrainConfig) -> int:
    return train.warmup_steps + 50


def _rates_before(case: Case, rise: Rise) -> list[tuple[int, float]]:
    """Step and learning rate, from BEFORE_STEPS before the rise up to it: of the flight record, and of lines before."""
    rates = [(each["step"], each["learning_rate"]) for each in rise.steps if each["step"] <= rise.since]
    first = rates[0][0] if rates else rise.since + 1
    lines = [(each.step, each.learning_rate) for each in case.points if each.learning_rate and each.step < first]
    rates = lines + rates
    near = [each for each in rates if each[0] >= rise.since - BEFORE_STEPS]
    return near if len(near) > 1 else rates[-2:]


def _norms_before(case: Case, rise: Rise) -> tuple[float, float] | None:
    """The medians of the gradient's norm: of the steps before, and of the last ones before the rise."""
    if rise.steps:
        norms = [
            each["grad_norm"] for each in rise.steps if each["grad_norm"] is not None and each["step"] < rise.since
        ]
    else:
        norms = [each.grad_norm for each in case.points if each.grad_norm is not None and each.step < rise.since]
    if len(norms) < 2 * FEW_LINES:
        return None
    last = max(3, len(norms) // 10)
    return statistics.median(norms[:-last][-100:]), statistics.median(norms[-last:])


def _odd_of(case: Case, rise: Rise) -> tuple[Odd | None, float]:
    """The odd range that most of the rise's windows lie in, and what part of them."""
    if case.text is None or not rise.starts or case.block_size is None:
        return None, 0.0
    counts = {
        odd: sum(odd.first < start + (case.block_size or 0) and start < odd.last for start in rise.starts)
        for odd in case.text.odd
    }
    odd = max(counts, key=lambda each: counts[each], default=None)
    return odd, (counts[odd] / len(rise.starts) if odd else 0.0)


def _part_in_odd(case: Case, rise: Rise) -> float | None:
    """None where it is not known."""
    return _odd_of(case, rise)[1] if case.text is not None and rise.starts else None


def _rate_at(case: Case, step: int | None) -> float | None:
    train = train_of(case)
    if train is None or step is None:
        return None
    return train.learning_rate_at(step)
