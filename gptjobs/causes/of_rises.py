"""Causes of a loss that rose, or fell at once: the schedule, the rate, the text, the optimizer."""

import math
import statistics
from collections.abc import Iterable

from gptjobs import ranges
from gptjobs.case import Case, Odd, Rise
from gptjobs.causes.cause import PossibleCause
from gptjobs.causes.commands import (
    can_resume,
    data_of,
    encoding_of,
    nice,
    replay_commands,
    resume_command,
    step_to_go_back_to,
    steps_left,
    train_command,
)
from gptjobs.causes.facts import highest_rate, own_points, rates_of, tokens_to_train_on, train_of
from gptjobs.diagnosis import RECENT_STEPS
from gptjobs.plateau import FEW_LINES

RATE_ROSE = 1.2
"""times, before a spike: the schedule was raising the rate"""
BEFORE_STEPS = 100
"""before a spike, in which the rate and the gradient's norm are looked at"""
IN_ODD = 0.5
"""of a spike's windows lie in odd text: then that is the cause"""
NORM_GREW = 1.5
"""times"""
EPOCHS_STEPS = 20 * RECENT_STEPS
"""that an epoch has at least: ends of shorter ones are near any step"""
WILD = 5.0
"""times its later median, and twice that of the first step, is a gradient's norm out of hand"""


def schedule(case: Case) -> Iterable[PossibleCause]:
    """A rise at a step where the schedule, or a resume, had raised the learning rate."""
    first = _first_rise(case)
    rates = _rates_while_raised(case, first) if first else []
    if first is None or len(rates) < 2:
        return
    (from_step, low), high = min(rates, key=lambda each: each[1]), rates[-1][1]
    if high < RATE_ROSE * low:
        return
    in_odd, rate = _part_in_odd(case, first), _bearable_rate(case, first, high)
    evidence = [
        first.reason,
        f"the learning rate rose {high / low:.3g} times: {low:.3g} at step {from_step}, {high:.3g} at step "
        f"{rates[-1][0]}",
    ]
    if high >= max(each for _, each in _rates_before(case, first)):
        evidence.append("it was higher there than at any step before")
    if in_odd is not None:
        evidence.append(f"{in_odd:.0%} of the windows that it had seen lie in odd text")
    lower = f"--learning-rate {nice(rate)} --schedule cosine --steps {steps_left(case, first)}"
    yield PossibleCause(
        name="schedule",
        title="the schedule raised the learning rate until training broke",
        strength=0.92 if not in_odd or in_odd < IN_ODD else 0.4,
        evidence=tuple(evidence),
        against=f"the same rise from {nice(rate)} down, on the same text",
        tests=(resume_command(case, lower, before=first.since), *replay_commands(case, first)),
    )


def rate_too_high(case: Case) -> Iterable[PossibleCause]:
    """A rise at a rate that is about its highest, or one rise after the other."""
    first = _first_rise(case)
    rates, highest = _rates_before(case, first) if first else [], highest_rate(case)
    if first is None or not rates or highest is None or rates[-1][1] < 0.5 * highest:
        return
    rate, norms = rates[-1][1], _norms_before(case, first)
    evidence, strength = [first.reason, f"the learning rate was {rate:.3g}, its highest is {highest:.3g}"], 0.5
    rises = [each for each in case.rises if not each.is_fall]
    if len(rises) > 1:
        strength += 0.2
        steps = ", ".join(str(each.since) for each in rises)
        other = ", on other text each time" if all(each.windows for each in rises) else ""
        evidence.append(f"it rose {len(rises)} times, at the steps {steps}{other}")
    if norms and norms[1] > NORM_GREW * norms[0]:
        strength += 0.1
        evidence.append(f"the gradient's norm grew before it, from {norms[0]:.3g} to {norms[1]:.3g}")
    lower = f"--learning-rate {nice(rate / 3)} --steps {steps_left(case, first)}"
    yield PossibleCause(
        name="rate_too_high",
        title="the learning rate is too high",
        strength=strength if (_part_in_odd(case, first) or 0.0) < IN_ODD else 0.3,
        evidence=tuple(evidence),
        against=f"the same rise at {nice(rate / 3)}",
        tests=(resume_command(case, lower, before=first.since), *replay_commands(case, first)),
    )


def odd_text(case: Case) -> Iterable[PossibleCause]:
    """A rise or fall while the windows lay in odd text."""
    if case.text is None:
        return
    by_range: dict[Odd, list[tuple[Rise, float]]] = {}
    for rise in case.rises:
        odd, part = _odd_of(case, rise)
        if odd is not None and part > 0:
            by_range.setdefault(odd, []).append((rise, part))
    for odd, seen in by_range.items():
        rise, part = max(seen, key=lambda each: each[1])
        share = (odd.last - odd.first) / case.text.tokens
        if part < max(IN_ODD / 2, 2 * share):
            continue
        leaves_out = f"--skip-tokens {_skipped(case, odd)} --steps {steps_left(case, rise)}"
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
                f"gptjobs data clean {data_of(case)}{encoding_of(case)} --dry-run",
                *replay_commands(case, rise),
            ),
        )


def end_of_epoch(case: Case) -> Iterable[PossibleCause]:
    """A rise or fall right after an epoch of the data ended."""
    tokens, batch, block, train = tokens_to_train_on(case), case.batch_size, case.block_size, train_of(case)
    if train is None or tokens is None or batch is None or block is None:
        return
    epoch = (tokens - 1) // block
    for rise in case.rises:
        if rise.windows is None or epoch < EPOCHS_STEPS * batch:
            continue
        # the first of these windows are those of the update before the rise
        ended = (rise.windows[0] + 2 * batch - 1) // epoch
        if ended == max(0, rise.windows[0] - RECENT_STEPS * batch) // epoch:
            continue
        yield PossibleCause(
            name="epoch",
            title="an epoch of the data ended there",
            strength=0.5,
            evidence=(
                rise.reason,
                f"epoch {ended} of the data, of {epoch:,} windows, ended at most {RECENT_STEPS + 1} steps before",
            ),
            against="the same rise at another seed, whose order has other text there",
            tests=(
                resume_command(case, f"--seed {(train.seed + 1) % 2**31} --steps 500", before=rise.since),
                *replay_commands(case, rise),
            ),
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
    rates = _rates_before(case, rise)
    rate = rates[-1][1] / 3 if rates else 1e-4
    yield PossibleCause(
        name="rise",
        title="something broke training there; the log does not tell what",
        strength=0.4,
        evidence=tuple(evidence),
        against="the same rise again, from the checkpoint before, with another order of the text",
        tests=(
            f"gptjobs data inspect {data_of(case)}{encoding_of(case)}",
            resume_command(case, f"--learning-rate {nice(rate)} --steps 500"),
        ),
    )


def norm_first(case: Case) -> Iterable[PossibleCause]:
    """The gradient's norm grew before the loss did: Adam's second moments lag behind (Molybog et al. 2023)."""
    rise = _first_rise(case)
    norms = _norms_before(case, rise) if rise else None
    if rise is None or norms is None or norms[1] < NORM_GREW * norms[0]:
        return
    rewarm = (resume_command(case, "--optimizer rewarm --steps 500", before=rise.since),)
    yield PossibleCause(
        name="norm_first",
        title="the gradients grew before the loss did: the optimizer is losing its hold",
        strength=min(0.6, 0.3 + 0.1 * math.log2(norms[1] / norms[0])),
        evidence=(
            rise.reason,
            f"the gradient's norm was {norms[0]:.3g}, by its median, and {norms[1]:.3g} right before the rise",
        ),
        against="the same rise with Adam's moments begun anew",
        tests=(*(rewarm if can_resume(case, rise) else ()), *replay_commands(case, rise)),
    )


def short_warmup(case: Case) -> Iterable[PossibleCause]:
    """A rise, or gradients out of hand, in the first steps at full rate of a job from scratch."""
    train = train_of(case)
    if case.plan is None or train is None or case.plan.parent is not None:
        return
    soon, first = train.warmup_steps + 50, _first_rise(case)
    if first is not None and first.since > soon:
        return
    norms = [(each.step, each.grad_norm) for each in own_points(case) if each.grad_norm is not None]
    early, late = ([norm for step, norm in norms if (step > soon) is after] for after in (False, True))
    if len(early) < 2 or len(late) < FEW_LINES:
        return
    highest, usual = max(early[1:]), statistics.median(late)
    if highest < max(WILD * usual, 2 * early[0]):
        return
    yield PossibleCause(
        name="warmup",
        title="the warm-up is too short",
        strength=0.6 if first else 0.35,
        evidence=(
            *([first.reason] if first else []),
            f"{train.warmup_steps} steps of warm-up; by step {soon} the gradient's norm went from {early[0]:.3g} to "
            f"{highest:.3g}, later its median is {usual:.3g}",
        ),
        against="the same gradients with a warm-up ten times as long",
        tests=(train_command(case, f"--warmup-steps {max(100, 10 * train.warmup_steps)}"),),
    )


def _first_rise(case: Case) -> Rise | None:
    return min((each for each in case.rises if not each.is_fall), key=lambda each: each.since, default=None)


def _rates_before(case: Case, rise: Rise) -> list[tuple[int, float]]:
    """Steps and learning rates up to the rise: of the lines, and of the flight record from where it begins."""
    flown = [(each["step"], each["learning_rate"]) for each in rise.steps if each["step"] <= rise.since]
    flown = [each for each in flown if each[1]]
    begins = flown[0][0] if flown else rise.since + 1
    return [each for each in rates_of(case) if each[0] < begins] + flown


def _rates_while_raised(case: Case, rise: Rise) -> list[tuple[int, float]]:
    """Those of the last BEFORE_STEPS; of a long warm-up, which was still going on, of the last half of the steps."""
    rates = _rates_before(case, rise)
    near = [each for each in rates if each[0] >= rise.since - BEFORE_STEPS]
    near = near if len(near) > 1 else rates[-2:]
    is_rising = len(near) > 1 and near[-2][1] < near[-1][1]
    return [each for each in rates if each[0] >= rise.since // 2] if is_rising and len(near) < len(rates) else near


def _bearable_rate(case: Case, rise: Rise, high: float) -> float:
    """A third of that which the checkpoint to go back to was trained at, else a tenth of that at which it broke."""
    train, step = train_of(case), step_to_go_back_to(case, rise)
    healthy = train.learning_rate_at(step) if train and step is not None else 0.0
    return healthy / 3 if healthy else high / 10


def _norms_before(case: Case, rise: Rise) -> tuple[float, float] | None:
    """The medians of the gradient's norm: of the steps before, and of the last ones before the rise."""
    if rise.steps:
        norms = [each["grad_norm"] for each in rise.steps if each["grad_norm"] and each["step"] < rise.since]
    else:
        norms = [each.grad_norm for each in case.points if each.grad_norm and each.step < rise.since]
    if len(norms) < 2 * FEW_LINES:
        return None
    last = max(3, len(norms) // 10)
    return statistics.median(norms[:-last][-BEFORE_STEPS:]), statistics.median(norms[-last:])


def _odd_of(case: Case, rise: Rise) -> tuple[Odd | None, float]:
    """The odd range that most of the rise's windows lie in, and what part of them."""
    block = case.block_size
    if case.text is None or not rise.starts or block is None:
        return None, 0.0
    counts = {
        odd: sum(odd.first < start + block and start < odd.last for start in rise.starts) for odd in case.text.odd
    }
    odd = max(counts, key=lambda each: counts[each], default=None)
    return odd, (counts[odd] / len(rise.starts) if odd else 0.0)


def _part_in_odd(case: Case, rise: Rise) -> float | None:
    """None where it is not known."""
    return _odd_of(case, rise)[1] if case.text is not None and rise.starts else None


def _skipped(case: Case, odd: Odd) -> str:
    """What the job is to leave out: this range, and what it leaves out already."""
    train = train_of(case)
    before = ranges.several(train.skip_tokens) if train else []
    return ",".join(f"{first}:{last}" for first, last in sorted({*before, (odd.first, odd.last)}))
