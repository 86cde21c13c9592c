"""Causes of a loss that stands still, falls slowly, or is held against the wrong one."""

import shlex
import statistics
from collections.abc import Iterable

from gptjobs.case import Case
from gptjobs.causes.cause import PossibleCause
from gptjobs.causes.commands import nice, resume_command
from gptjobs.causes.facts import (
    FEW_LINES,
    end_loss,
    epochs_seen,
    highest_rate,
    is_own,
    losses_of,
    noise_scale,
    parameters,
    stands_still,
    train_of,
)
from gptjobs.config import HELD_OUT_PART
from gptjobs.slowdown import SLOW_PART

RATE_GONE = 0.02
"""of its highest, below which a learning rate is nothing any more"""
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


def unigram(case: Case) -> Iterable[PossibleCause]:
    """The loss is that of a model which knows how often each token comes, and nothing of their order."""
    loss = end_loss(case.points)
    if case.text is None or loss is None:
        return
    entropy = case.text.unigram
    best = min(each for each in losses_of(case.points))
    if best < 0.97 * entropy:
        return
    standing, still = stands_still(case), []
    if standing:
        still = [f"it stands still: {standing[0]:.3f} before the last third, {standing[1]:.3f} at the end"]
    rate = highest_rate(case)
    higher = f"--learning-rate {nice(3 * rate)} --warmup-steps 100" if rate else "--learning-rate 6e-4"
    yield PossibleCause(
        name="unigram",
        title="the model has learned how often each token comes, and nothing of their order",
        strength=0.95 if standing else 0.6,
        evidence=(
            f"the loss ends at {loss:.3f} nats, its lowest line is {best:.3f}; the entropy of the text's token "
            f"frequencies is {entropy:.3f}",
            *still,
            "so a lower learning rate is the wrong cure: there is nothing yet to settle into",
        ),
        against="a lower loss than the frequencies' entropy within the next million tokens at the same rate",
        tests=(resume_command(case, f"{higher} --steps 1000"),),
    )


def rate_gone(case: Case) -> Iterable[PossibleCause]:
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
        tests=(resume_command(case, f"--learning-rate {nice(highest / 3)} --schedule cosine --steps 1000"),),
    )


def rate_too_low(case: Case) -> Iterable[PossibleCause]:
    """It falls evenly, and slowly, at a rate far below what such models take."""
    train, highest = train_of(case), highest_rate(case)
    losses = losses_of(case.points)
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
        tests=(resume_command(case, f"--learning-rate {nice(3 * highest)} --warmup-steps 50 --steps 500"),),
    )


def always_clipped(case: Case) -> Iterable[PossibleCause]:
    """Nearly every gradient is scaled down: the rate is not what it says."""
    train = train_of(case)
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
        tests=(resume_command(case, f"--grad-clip {nice(2 * middle)} --steps 500"),),
    )


def noisy_batch(case: Case) -> Iterable[PossibleCause]:
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
        tests=(resume_command(case, f"--batch-size {4 * case.batch_size} --steps 500"),),
    )


def few_tokens(case: Case) -> Iterable[PossibleCause]:
    """It has not seen enough yet, or there is not enough to see."""
    if case.plan is None or case.points[-1].tokens is None or stands_still(case) or case.rises:
        return
    count, seen = parameters(case.plan.settled.model), case.points[-1].tokens
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
            tests=(resume_command(case, f"--steps {case.points[-1].step}"),),
        )


def overfitting(case: Case) -> Iterable[PossibleCause]:
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
    epochs = epochs_seen(case)
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
        tests=(resume_command(case, "--dropout 0.1 --steps 500", which="best"),),
    )


def slowdown(case: Case) -> Iterable[PossibleCause]:
    """Fewer tokens a second than at first. That costs time and no loss."""
    told = [str(each["reason"]) for each in case.slow]
    speeds = [(each.step, each.tokens_per_s) for each in case.points if each.tokens_per_s and is_own(case, each)]
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


def wrong_axis(case: Case) -> Iterable[PossibleCause]:
    """The job and its parent do not compare by step, or not by their validation losses."""
    plan = case.plan
    if plan is None or not case.parents:
        return
    parent = next(iter(case.parents))
    old, new = case.parents[parent].settled.train, plan.settled.train
    sizes = [each.batch_size * each.block_size for each in (old, new)]
    evidence = []
    if sizes[0] != sizes[1]:
        own = [each for each in case.points if is_own(case, each)]
        before = [each for each in case.points if not is_own(case, each)]
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
