"""Why a loss stands still or rises: each rule looks at a case and names a possible cause, with the evidence and its
numbers, what would speak against it, and the command that tests it. The rules in words: docs/diagnosis.md."""

import math
import shlex
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gptjobs.case import Case, Odd, Point, Rise
from gptjobs.config import HELD_OUT_PART, ModelConfig, TrainConfig
from gptjobs.slowdown import SLOW_PART

STANDS = 0.01
"""of the loss, by which it must fall over the last third of the tokens; else it stands still"""
RATE_ROSE = 1.2
"""times, within the steps before a spike: the schedule was raising the rate"""
BEFORE_STEPS = 100
"""before a spike, in which the rate and the gradient's norm are looked at"""
RATE_GONE = 0.02
"""of its highest, below which a learning rate is nothing any more"""
IN_ODD = 0.5
"""of a spike's windows lie in odd text: then that is the cause"""
CLIPPED = 0.9
"""of the lines have a gradient that is clipped"""
CHINCHILLA = 20.0
"""tokens a parameter: Hoffmann et al. 2022"""
REPEATS = 4.0
"""epochs, up to which repeated text is nearly as good as new: Muennighoff et al. 2023"""
OVERFIT = 0.02
"""of the loss, by which validation rose from its lowest while training fell"""
NOISY = 4.0
"""The gradient noise scale is so many times the batch."""
FEW_LINES = 8
"""below which nothing is said about a course"""


@dataclass(frozen=True, kw_only=True)
class PossibleCause:
    """`strength` ranks: 0.9 and more are as good as certain by these numbers, below 0.3 is a mention. `tests` are
    commands as they are typed."""

    name: str
    title: str
    strength: float
    evidence: tuple[str, ...]
    against: str
    tests: tuple[str, ...]


def possible_causes(case: Case) -> list[PossibleCause]:
    """The likeliest first."""
    found = [cause for rule in _RULES for cause in rule(case)]
    return sorted(found, key=lambda each: -each.strength)


def stands_still(case: Case) -> tuple[float, float] | None:
    """The losses a third of the way before the end and at the end, where they differ by less than STANDS."""
    losses = _losses(case.points)
    if len(losses) < FEW_LINES:
        return None
    third, tenth = max(1, len(losses) // 3), max(3, len(losses) // 10)
    before = statistics.median(losses[-third - tenth : -third] or losses[:1])
    after = statistics.median(losses[-tenth:])
    return (before, after) if after > (1 - STANDS) * before else None


def _losses(points: Sequence[Point]) -> list[float]:
    """Of training, else of validation."""
    train = [each.train_loss for each in points if each.train_loss is not None]
    validation = [each.val_loss for each in points if each.val_loss is not None]
    return train if len(train) >= len(validation) else validation


def _end(points: Sequence[Point]) -> float | None:
    losses = _losses(points)
    return statistics.median(losses[-max(3, len(losses) // 10) :]) if losses else None


def _unigram(case: Case) -> Iterable[PossibleCause]:
    """The loss is that of a model which knows how often each token comes, and nothing of their order."""
    loss = _end(case.points)
    if case.text is None or loss is None:
        return
    entropy = case.text.unigram
    best = min(each for each in _losses(case.points))
    if best < 0.97 * entropy:
        return
    standing = stands_still(case)
    strength = 0.95 if standing else 0.6
    rate = _highest_rate(case)
    higher = f"--learning-rate {_nice(3 * rate)} --warmup-steps 100" if rate else "--learning-rate 6e-4"
    yield PossibleCause(
        name="unigram",
        title="the model has learned how often each token comes, and nothing of their order",
        strength=strength,
        evidence=(
            f"the loss ends at {loss:.3f} nats, its lowest line is {best:.3f}; the entropy of the text's token "
            f"frequencies is {entropy:.3f}",
            f"it stands still: {standing[0]:.3f} before the last third, {standing[1]:.3f} at the end"
            if standing
            else "it still falls",
            "so a lower learning rate is the wrong cure: there is nothing yet to settle into",
        ),
        against="a lower loss than the frequencies' entropy within the next million tokens at the same rate",
        tests=(_resume(case, f"{higher} --steps 1000"),),
    )


def _schedule(case: Case) -> Iterable[PossibleCause]:
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
    healthy = _rate_at(case, _step_to_go_back_to(case, first)) or low
    evidence = [
        f"{first.reason}",
        f"the learning rate rose {grew:.3g} times: {low:.3g} at step {from_step}, {high:.3g} at step {first.since}",
    ]
    if high >= 0.99 * (_highest_rate(case) or 0.0):
        evidence.append("it was higher there than at any step before")
    if len(rises) > 1:
        evidence.append(f"the loss rose {len(rises)} times, each time under this schedule, on other text")
    if in_odd is not None:
        evidence.append(f"the text is not the cause: {in_odd:.0%} of the windows it had seen are odd")
    against = f"the same rise at a constant learning rate of {_nice(healthy / 3)} on the same text"
    lower = f"--learning-rate {_nice(healthy / 3)} --steps {max(100, _steps_left(case, first))}"
    yield PossibleCause(
        name="schedule",
        title="the schedule raised the learning rate until training broke",
        strength=0.92 if not in_odd or in_odd < IN_ODD else 0.4,
        evidence=tuple(evidence),
        against=against,
        tests=(_resume(case, lower, before=first.since), *_replay(case, first)),
    )


def _rate_too_high(case: Case) -> Iterable[PossibleCause]:
    """A rise at a rate that is at its highest and was not just raised, or one rise after the other."""
    rises = [each for each in case.rises if not each.is_fall]
    if not rises:
        return
    first = min(rises, key=lambda each: each.since)
    rates, highest = _rates_before(case, first), _highest_rate(case)
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
    lower = f"--learning-rate {_nice(rates[-1][1] / 3)} --steps {max(100, _steps_left(case, first))}"
    yield PossibleCause(
        name="rate_too_high",
        title="the learning rate is too high",
        strength=strength if in_odd < IN_ODD else 0.3,
        evidence=tuple(evidence),
        against=f"the same rise at {_nice(rates[-1][1] / 3)}",
        tests=(_resume(case, lower, before=first.since), *_replay(case, first)),
    )


def _data(case: Case) -> Iterable[PossibleCause]:
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
        tokens = f"{odd.first}:{odd.last}"
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
                _resume(case, f"--skip-tokens {tokens} --steps {max(100, _steps_left(case, rise))}", before=rise.since),
                f"gptjobs data clean {_data_of(case)} --out clean.txt --dry-run",
                *_replay(case, rise),
            ),
        )


def _epoch(case: Case) -> Iterable[PossibleCause]:
    """A rise or fall where an epoch of the data ended."""
    if case.plan is None or case.text is None or case.tokens_a_step is None:
        return
    epoch = case.text.tokens * (HELD_OUT_PART - 1) // HELD_OUT_PART
    for rise in case.rises:
        if rise.windows is None or case.block_size is None:
            continue
        first, last = (each * case.block_size for each in rise.windows)
        if first // epoch == last // epoch or epoch < 50 * case.tokens_a_step:
            continue
        yield PossibleCause(
            name="epoch",
            title="an epoch of the data ended there",
            strength=0.5,
            evidence=(rise.reason, f"epoch {last // epoch} of the data ended at token {last // epoch * epoch:,} then"),
            against="the same rise at another seed, whose order has other text there",
            tests=(_resume(case, "--seed 7 --steps 500", before=rise.since),),
        )


def _norm_first(case: Case) -> Iterable[PossibleCause]:
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
            tests=(_resume(case, "--optimizer rewarm --steps 500", before=rise.since), *_replay(case, rise)),
        )


def _warmup(case: Case) -> Iterable[PossibleCause]:
    """A rise, or gradients out of hand, in the first steps at full rate."""
    train = _train(case)
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
        tests=(_train_anew(case, f"--warmup-steps {max(100, 10 * train.warmup_steps)}"),),
    )


def _soon(train: TrainConfig) -> int:
    return train.warmup_steps + 50


def _rate_gone(case: Case) -> Iterable[PossibleCause]:
    """The schedule has ended: nothing moves any more."""
    rates = [each.learning_rate for each in case.points if each.learning_rate is not None]
    standing = stands_still(case)
    if not rates or standing is None:
        return
    highest = max(rates)
    if rates[-1] > RATE_GONE * highest:
        return
    since = next(each.step for each in reversed(case.points) if (each.learning_rate or 0.0) > RATE_GONE * highest)
    yield PossibleCause(
        name="rate_gone",
        title="the learning rate has decayed to nothing",
        strength=0.85,
        evidence=(
            f"since step {since} it is below {RATE_GONE:.0%} of its highest, {highest:.3g}; it ends at {rates[-1]:.3g}",
            f"the loss stands still: {standing[0]:.4f} before the last third, {standing[1]:.4f} at the end",
        ),
        against="a loss that stands still at a tenth of the highest rate as well",
        tests=(_resume(case, f"--learning-rate {_nice(highest / 3)} --schedule cosine --steps 1000"),),
    )


def _rate_too_low(case: Case) -> Iterable[PossibleCause]:
    """It falls evenly, and slowly, at a rate far below what such models take."""
    train, highest = _train(case), _highest_rate(case)
    losses = _losses(case.points)
    if train is None or highest is None or len(losses) < FEW_LINES or highest > 1e-4 or case.rises:
        return
    yield PossibleCause(
        name="rate_too_low",
        title="the learning rate is low",
        strength=0.45 if stands_still(case) else 0.3,
        evidence=(
            f"its highest is {highest:.3g}; GPT-2's sizes are usually trained at 6e-4 and more (Brown et al. 2020)",
        ),
        against="a loss that rises at three times the rate",
        tests=(_resume(case, f"--learning-rate {_nice(3 * highest)} --warmup-steps 50 --steps 500"),),
    )


def _clipped(case: Case) -> Iterable[PossibleCause]:
    """Nearly every gradient is scaled down: the rate is not what it says."""
    train = _train(case)
    norms = [each.grad_norm for each in case.points if each.grad_norm is not None]
    if train is None or not train.grad_clip or len(norms) < FEW_LINES:
        return
    norms = norms[len(norms) // 10 :]
    part = sum(each > train.grad_clip for each in norms) / len(norms)
    if part < CLIPPED:
        return
    middle = statistics.median(norms)
    yield PossibleCause(
        name="clipped",
        title="the gradient is clipped all the time",
        strength=0.3,
        evidence=(
            f"{part:.0%} of the lines have a norm above --grad-clip {train.grad_clip:g}; its median is {middle:.3g}",
            "Adam divides by the gradient's size, so that a clip that always holds does little but even out the steps",
        ),
        against="the same course with a clip above the usual norm",
        tests=(_resume(case, f"--grad-clip {_nice(2 * middle)} --steps 500"),),
    )


def _noisy(case: Case) -> Iterable[PossibleCause]:
    """The gradient noise scale, from the norms of a micro-batch's gradient and the whole batch's (McCandlish et al.
    2018, appendix A.1)."""
    scale = noise_scale(case)
    if scale is None or case.batch_size is None or scale < NOISY * case.batch_size:
        return
    yield PossibleCause(
        name="noisy",
        title="the batch is small against the noise of the gradient",
        strength=min(0.6, 0.25 + 0.05 * scale / case.batch_size),
        evidence=(
            f"the gradient noise scale is {scale:,.0f} windows, the batch has {case.batch_size}: "
            "a step is mostly noise",
        ),
        against="no lower loss at equal tokens with four times the batch",
        tests=(_resume(case, f"--batch-size {4 * case.batch_size} --steps 500"),),
    )


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


def _few_tokens(case: Case) -> Iterable[PossibleCause]:
    """It has not seen enough yet, or there is not enough to see."""
    if case.plan is None or case.points[-1].tokens is None or stands_still(case) or case.rises:
        return
    count, seen = _parameters(case.plan.settled.model), case.points[-1].tokens
    wanted = CHINCHILLA * count
    evidence = [f"{seen:,} tokens for {count:,} parameters: {seen / count:.3g} each; {CHINCHILLA:.0f} are the usual"]
    strength = 0.4 if seen < wanted / 4 else 0.0
    if case.text is not None:
        unique = case.text.tokens * (HELD_OUT_PART - 1) // HELD_OUT_PART
        evidence.append(f"the text has {unique:,} tokens to train on: {seen / unique:.2g} epochs so far")
        if REPEATS * unique < wanted and seen > REPEATS * unique:
            strength = 0.5
            evidence.append(f"more than {REPEATS:.0f} epochs of the same text teach little")
    if strength:
        yield PossibleCause(
            name="few_tokens",
            title="it has seen few tokens for its size, and the loss still falls",
            strength=strength,
            evidence=tuple(evidence),
            against="a loss that stands still over as many tokens again",
            tests=(_resume(case, f"--steps {case.points[-1].step}"),),
        )


def _overfitting(case: Case) -> Iterable[PossibleCause]:
    """Validation rises while training falls."""
    evaluated = [each for each in case.points if each.val_loss is not None]
    if len(evaluated) < 4:
        return
    best = min(evaluated, key=lambda each: each.val_loss or 0.0)
    assert best.val_loss is not None and evaluated[-1].val_loss is not None
    later = [each.train_loss for each in case.points if each.step > best.step and each.train_loss is not None]
    earlier = [each.train_loss for each in case.points if each.step <= best.step and each.train_loss is not None]
    rise = evaluated[-1].val_loss / best.val_loss - 1
    if rise < OVERFIT or len(later) < 3 or not earlier or statistics.median(later) >= earlier[-1]:
        return
    epochs = _epochs(case)
    yield PossibleCause(
        name="overfitting",
        title="the model learns its text by heart",
        strength=min(0.9, 0.6 + 2 * rise),
        evidence=(
            f"validation loss was lowest at step {best.step}, {best.val_loss:.4f}, and ends at "
            f"{evaluated[-1].val_loss:.4f}; training loss fell from {earlier[-1]:.4f} to {later[-1]:.4f}",
            *([f"the text was seen {epochs:.2g} times"] if epochs else []),
        ),
        against="a validation loss that falls with --dropout 0.1",
        tests=(_resume(case, "--dropout 0.1 --steps 500", which="best"),),
    )


def _slow(case: Case) -> Iterable[PossibleCause]:
    """Fewer tokens a second than at first. That costs time and no loss."""
    told = [str(each["reason"]) for each in case.slow]
    speeds = [(each.step, each.tokens_per_s) for each in case.points if each.tokens_per_s and _is_own(case, each)]
    if len(speeds) >= 2 * FEW_LINES:
        usual = statistics.median(speed for _, speed in speeds[1 : FEW_LINES + 1])
        now = statistics.median(speed for _, speed in speeds[-FEW_LINES:])
        if now < SLOW_PART * usual:
            since = next(step for step, speed in reversed(speeds) if speed >= SLOW_PART * usual)
            told.insert(
                0, f"{now:,.0f} tokens/s at the end, {usual:,.0f} at first; below {SLOW_PART:.0%} since step {since}"
            )
    if told:
        yield PossibleCause(
            name="slow",
            title="training became slower, which costs time and no loss",
            strength=0.35,
            evidence=tuple(told),
            against="the same speed on an idle, cool host",
            tests=(f"gptjobs doctor && gptjobs logs {case.reference}".strip(),),
        )


def _wrong_axis(case: Case) -> Iterable[PossibleCause]:
    """The job and its parent do not compare by step, or not by their validation losses."""
    plan = case.plan
    if plan is None or not case.parents:
        return
    parent = next(iter(case.parents))
    old, new = case.parents[parent].settled.train, plan.settled.train
    sizes = [each.batch_size * each.block_size for each in (old, new)]
    evidence = []
    if sizes[0] != sizes[1]:
        own = [each for each in case.points if _is_own(case, each)]
        before = [each for each in case.points if not _is_own(case, each)]
        taken = (own[-1].tokens or 0) - (before[-1].tokens or 0)
        evidence.append(
            f"a step was {sizes[0]:,} tokens before and is {sizes[1]:,} now: the "
            f"{own[-1].step - before[-1].step:,} steps since are {taken:,} tokens, as many as "
            f"{taken / sizes[0]:,.0f} of the steps before"
        )
    contexts = list(dict.fromkeys(each.eval_context for each in case.points if each.val_loss is not None))
    if len(contexts) > 1:
        last = {each.eval_context: each.val_loss for each in case.points if each.val_loss is not None}
        losses = ", ".join(f"{last[each]:.4f} at context {each}" for each in contexts)
        evidence.append(f"validation losses are of several contexts: {losses}; a shorter one has a higher loss")
    if evidence:
        context = min(each for each in contexts if each) if contexts else new.block_size
        yield PossibleCause(
            name="wrong_axis",
            title="its curve does not compare with that of before by steps, or by these losses",
            strength=0.55 if len(contexts) > 1 else 0.3,
            evidence=tuple(evidence),
            against="the same order of both on tokens, evaluated at one context",
            tests=(
                f"gptjobs compare {parent} {shlex.quote(case.reference)} --eval-context {context}",
                f"gptjobs plot {parent} {shlex.quote(case.reference)}",
            ),
        )


_RULES: tuple[Callable[[Case], Iterable[PossibleCause]], ...] = (
    _unigram, _schedule, _rate_too_high, _data, _epoch, _norm_first, _warmup, _rate_gone, _rate_too_low, _clipped,
    _noisy, _few_tokens, _overfitting, _slow, _wrong_axis,
)  # fmt: skip


def _is_own(case: Case, point: Point) -> bool:
    return case.plan is None or point.job == case.plan.job


def _train(case: Case) -> TrainConfig | None:
    return case.plan.settled.train if case.plan else None


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


def _highest_rate(case: Case) -> float | None:
    rates = [each.learning_rate for each in case.points if each.learning_rate is not None]
    rates += [each["learning_rate"] for rise in case.rises for each in rise.steps if each["step"] <= rise.since]
    return max(rates, default=None)


def _rate_at(case: Case, step: int | None) -> float | None:
    train = _train(case)
    if train is None or step is None:
        return None
    return train.learning_rate_at(step)


def _epochs(case: Case) -> float | None:
    if case.text is None or case.points[-1].tokens is None:
        return None
    return case.points[-1].tokens / (case.text.tokens * (HELD_OUT_PART - 1) / HELD_OUT_PART)


def _parameters(model: ModelConfig) -> int:
    """Without biases and norms, which are a thousandth."""
    tables = (model.vocab_size * (1 if model.tied else 2) + model.n_positions) * model.n_embd
    return tables + 12 * model.n_layer * model.n_embd**2


def _step_to_go_back_to(case: Case, rise: Rise) -> int | None:
    steps = [each for each in case.checkpoints if each < rise.since - 1]
    return max(steps, default=None)


def _steps_left(case: Case, rise: Rise) -> int:
    end = case.plan.settled.end_step if case.plan else rise.step + 500
    return end - (_step_to_go_back_to(case, rise) or (case.plan.settled.start_step if case.plan else 0))


def _resume(case: Case, words: str, *, before: int | None = None, which: str = "last") -> str:
    """The command that goes on from the checkpoint before a step, or from the last; a log has none."""
    if case.plan is None:
        return f"gptjobs submit resume --from CHECKPOINT {words}"
    steps = [each for each in case.checkpoints if before is None or each < before - 1]
    if steps:
        at = which if before is None else str(max(steps))
        return f"gptjobs submit resume --from {shlex.quote(case.reference)}@{at} {words}"
    if case.parent is not None:
        return f"gptjobs submit resume --from {shlex.quote(case.parent)} {words}"
    return _train_anew(case, words)


def _train_anew(case: Case, words: str) -> str:
    shape = ""
    if case.plan is not None:
        model = case.plan.settled.model
        shape = f"--n-layer {model.n_layer} --n-head {model.n_head} --n-embd {model.n_embd} "
        shape += f"--encoding {case.plan.settled.train.encoding} "
    return f"gptjobs submit train --data {_data_of(case)} {shape}{words}"


def _data_of(case: Case) -> str:
    return shlex.quote(case.plan.settled.train.data) if case.plan else "FILE"


def _replay(case: Case, rise: Rise) -> tuple[str, ...]:
    if case.plan is None:
        return ()
    return (f"gptjobs diagnose {shlex.quote(case.reference)} --replay {max(1, rise.since - 2)}:{rise.step}",)


def _nice(value: float) -> str:
    """Two digits are enough."""
    return f"{value:.2g}"
