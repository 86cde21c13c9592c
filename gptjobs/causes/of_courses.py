"""Causes of a loss that stands still, falls slowly, or is held against the wrong one."""

import shlex
import statistics
from collections.abc import Iterable

from gptjobs.case import Case, Point
from gptjobs.causes.cause import PossibleCause
from gptjobs.causes.commands import nice, resume_command
from gptjobs.causes.facts import (
    end_loss,
    epochs_seen,
    highest_rate,
    lowest_loss,
    noise_scale,
    own_points,
    parameters,
    stands_still,
    tokens_to_train_on,
    train_of,
)
from gptjobs.config import TRAIN_FIELDS, TrainConfig
from gptjobs.plateau import FEW_LINES
from gptjobs.slowdown import SLOW_PART

OF_FREQUENCIES = 0.97
"""of the entropy of the tokens' frequencies: a lower loss knows something of their order"""
USUAL_RATE = 1e-3
"""up to which a rate may be raised where nothing is learned; from there on it may be what stands in the way"""
LOW_RATE = 1e-4
RATE_GONE = 0.02
"""of its highest, below which a learning rate is nothing any more"""
LONG_GONE = 0.2
"""of the lines, for which it is"""
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
    """The loss is that of a model which knows how often each token comes at most, and nothing of their order."""
    loss, lowest = end_loss(case.points), lowest_loss(case.points)
    if case.text is None or loss is None or lowest is None:
        return
    lowest = min(lowest, loss)
    entropy, standing, rate = case.text.unigram, stands_still(case), highest_rate(case)
    if lowest < OF_FREQUENCIES * entropy:
        return
    evidence = [
        f"the loss ends at {loss:.3f} nats, at its lowest it was {lowest:.3f}; the entropy of the text's token "
        f"frequencies is {entropy:.3f}"
    ]
    if standing:
        evidence.append(f"it stands still: {standing[0]:.3f} before the last third, {standing[1]:.3f} at the end")
    is_high = rate is not None and rate > USUAL_RATE
    if is_high:
        evidence.append(f"the learning rate reached {rate:.3g}: a lower one may learn more")
    else:
        evidence.append("so a lower learning rate is the wrong cure: there is nothing yet to settle into")
    other = TrainConfig.learning_rate if rate is None else rate / 3 if is_high else 3 * rate
    is_few = len(case.points) <= FEW_LINES
    yield PossibleCause(
        name="unigram",
        title="the model has learned how often each token comes at most, and nothing of their order",
        strength=0.95 if standing else 0.5 if is_few else 0.35,
        evidence=tuple(evidence),
        against="a loss below the frequencies' entropy within the next million tokens at the same rate",
        tests=(resume_command(case, f"--learning-rate {nice(other)} --warmup-steps 100 --steps 1000"),),
    )


def rate_gone(case: Case) -> Iterable[PossibleCause]:
    """The schedule has ended: nothing moves any more."""
    rates = [(each.step, each.learning_rate) for each in case.points if each.learning_rate is not None]
    highest, standing = max((rate for _, rate in rates), default=0.0), stands_still(case)
    if not highest or standing is None:
        return
    lines_moving = max(place for place, (_, rate) in enumerate(rates) if rate > RATE_GONE * highest) + 1
    if lines_moving == len(rates):
        return
    since, part = rates[lines_moving][0], 1 - lines_moving / len(rates)
    yield PossibleCause(
        name="rate_gone",
        title="the learning rate has decayed to nothing",
        strength=0.85 if part >= LONG_GONE else 0.4,
        evidence=(
            f"from step {since} on, {part:.0%} of the lines, it is below {RATE_GONE:.0%} of its highest, "
            f"{highest:.3g}; it ends at {rates[-1][1]:.3g}",
            f"the loss stands still: {standing[0]:.4f} before the last third, {standing[1]:.4f} at the end",
        ),
        against="a loss that stands still at a third of the highest rate as well",
        tests=(resume_command(case, f"--learning-rate {nice(highest / 3)} --schedule cosine --steps 1000"),),
    )


def rate_too_low(case: Case) -> Iterable[PossibleCause]:
    """A rate far below what such models take, at all steps."""
    highest = highest_rate(case)
    if highest is None or len(case.points) < FEW_LINES or highest > LOW_RATE or case.rises:
        return
    yield PossibleCause(
        name="rate_too_low",
        title="the learning rate is low",
        strength=0.45 if stands_still(case) else 0.3,
        evidence=(
            f"its highest is {highest:.3g}; models of GPT-2's sizes are usually trained at a peak of 2e-4 to 6e-4 "
            "(Brown et al. 2020, table 2.1), smaller ones at more",
        ),
        against="a loss that rises at three times the rate",
        tests=(resume_command(case, f"--learning-rate {nice(3 * highest)} --warmup-steps 50 --steps 500"),),
    )


def always_clipped(case: Case) -> Iterable[PossibleCause]:
    """Nearly every gradient is scaled down: the rate is not what it says."""
    train = train_of(case)
    norms = [each.grad_norm for each in own_points(case) if each.grad_norm is not None]
    if train is None or not train.grad_clip or len(norms) < FEW_LINES:
        return
    norms = norms[len(norms) // 10 :]
    part = sum(each > train.grad_clip for each in norms) / len(norms)
    if part < CLIPPED:
        return
    middle = statistics.median(norms)
    wider = min(2 * middle, TRAIN_FIELDS["grad_clip"].metadata["high"])
    yield PossibleCause(
        name="clipped",
        title="the gradient is clipped all the time",
        strength=0.3,
        evidence=(
            f"{part:.0%} of the lines have a norm above --grad-clip {train.grad_clip:g}; its median is {middle:.3g}",
            "Adam divides by the gradient's size, so that a clip that always holds does little but even out the steps",
        ),
        against="the same course with a clip above the usual norm",
        tests=(resume_command(case, f"--grad-clip {nice(wider)} --steps 500"),),
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
        strength=min(0.55, 0.25 + 0.05 * scale / case.batch_size),
        evidence=(
            f"the gradient noise scale is {scale:,.0f} windows, the batch has {case.batch_size}: "
            "a step is mostly noise",
        ),
        against="no lower loss at equal tokens with four times the batch",
        tests=(resume_command(case, f"--batch-size {4 * case.batch_size} --steps 500"),),
    )


def few_tokens(case: Case) -> Iterable[PossibleCause]:
    """It has not seen enough yet, or there is not enough to see."""
    seen = case.points[-1].tokens
    if case.plan is None or not seen or stands_still(case) or case.rises:
        return
    count, unique = parameters(case.plan.settled.model), tokens_to_train_on(case)
    wanted = CHINCHILLA * count
    evidence = [f"{seen:,} tokens for {count:,} parameters: {seen / count:.3g} each; {CHINCHILLA:.0f} are the usual"]
    strength = 0.4 if seen < wanted / 4 else 0.0
    if unique:
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
            tests=(resume_command(case, f"--steps {max(100, case.points[-1].step)}"),),
        )


def overfitting(case: Case) -> Iterable[PossibleCause]:
    """Validation rises while training falls."""
    evaluated = _evaluations(case)
    if len(evaluated) < 4:
        return
    best_step, best = min(evaluated, key=lambda each: each[1])
    last = evaluated[-1][1]
    later = [each.train_loss for each in case.points if each.step > best_step and each.train_loss is not None]
    earlier = [each.train_loss for each in case.points if each.step <= best_step and each.train_loss is not None]
    rise = min(loss for _, loss in evaluated[-2:]) / best - 1
    if rise < OVERFIT or len(later) < 3 or not earlier:
        return
    before, after = statistics.median(earlier[-3:]), statistics.median(later[-3:])
    if after >= before:
        return
    epochs, train = epochs_seen(case), train_of(case)
    dropout = 0.1 if train is None or train.dropout < 0.1 else min(0.5, 2 * train.dropout)
    yield PossibleCause(
        name="overfitting",
        title="the model learns its text by heart",
        strength=min(0.9, 0.6 + 2 * rise),
        evidence=(
            f"validation loss was lowest at step {best_step}, {best:.4f}, and ends at {last:.4f}; training loss fell "
            f"from {before:.4f} to {after:.4f}",
            *([f"the text was seen {epochs:.2g} times"] if epochs else []),
        ),
        against=f"a validation loss that rises with --dropout {dropout:g} as well",
        tests=(resume_command(case, f"--dropout {dropout:g} --steps 500", which="best"),),
    )


def _evaluations(case: Case) -> list[tuple[int, float]]:
    """Steps and losses, at the context of the newest: of others they do not compare."""
    found = [(each.eval_context, each.step, each.val_loss) for each in case.points if each.val_loss is not None]
    return [(step, loss) for context, step, loss in found if context == found[-1][0]]


def slowdown(case: Case) -> Iterable[PossibleCause]:
    """Fewer tokens a second than at first. That costs time and no loss."""
    told = [str(each["reason"]) for each in case.slow]
    speeds = [(each.step, each.tokens_per_s) for each in own_points(case) if each.tokens_per_s]
    if len(speeds) >= 2 * FEW_LINES:
        usual = statistics.median(speed for _, speed in speeds[1 : FEW_LINES + 1])
        now = statistics.median(speed for _, speed in speeds[-FEW_LINES:])
        if now < SLOW_PART * usual:
            fast = max(step for step, speed in speeds if speed >= SLOW_PART * usual)
            told.insert(
                0, f"{now:,.0f} tokens/s at the end, {usual:,.0f} at first; below {SLOW_PART:.0%} after step {fast}"
            )
    if told:
        logs = [f"gptjobs logs {shlex.quote(case.reference)}"] if case.reference else []
        yield PossibleCause(
            name="slow",
            title="training became slower, which costs time and no loss",
            strength=0.35,
            evidence=tuple(told),
            against="the same speed on an idle, cool host",
            tests=("gptjobs doctor", *logs),
        )


def wrong_axis(case: Case) -> Iterable[PossibleCause]:
    """The job and its parent do not compare by step, or not by their validation losses."""
    if case.plan is None or not case.parents:
        return
    parent, plan = next(iter(case.parents.items()))
    old, new = plan.settled.train, case.plan.settled.train
    contexts = _contexts(case)
    evidence = _in_steps_of_before(own_points(case), old.batch_size * old.block_size, new.batch_size * new.block_size)
    if len(contexts) > 1:
        losses = ", ".join(f"{loss:.4f} at context {context}" for context, loss in contexts.items())
        evidence.append(f"validation losses are of several contexts: {losses}; a shorter one has a higher loss")
    if not evidence:
        return
    context = min([*contexts, old.block_size, new.block_size])
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


def _in_steps_of_before(own: list[Point], old: int, new: int) -> list[str]:
    """How far the job has come, where its steps have other sizes, in tokens."""
    steps = own[-1].step - own[0].step
    if old == new or not steps:
        return []
    return [
        f"a step was {old:,} tokens before and is {new:,} now: the {steps:,} steps since are {steps * new:,} tokens, "
        f"as many as {steps * new / old:,.0f} of the steps before"
    ]


def _contexts(case: Case) -> dict[int, float]:
    """Each context that was evaluated at, with the newest loss there."""
    return {each.eval_context: each.val_loss for each in case.points if each.eval_context and each.val_loss is not None}
