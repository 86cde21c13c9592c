"""What steps that were run again say: whether a spike is in the text, the optimizer, the rate or the device."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptjobs.diagnosis import LEVEL_STEPS, NOISES, RISE, noise

AS_IT_WAS, RESET, TENTH = "as it was", "moments reset", "a tenth of the rate"
"""the variants that are run"""
FEWEST = 8
"""batches beside the steps, to hold theirs against"""

Losses = Mapping[int, float | None]
"""by step; None, as NaN, for what was no number"""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """`where`: text, optimizer, rate, weights, device or nowhere; and why."""

    where: str
    words: str
    evidence: tuple[str, ...]


def judge(recorded: Losses, text: Losses, variants: Mapping[str, Losses], steps: range, device: str) -> Judgement:
    """Of the job's own losses, those of the steps' batches by the weights of before, and those of each variant."""
    beside = [_number(loss) for step, loss in text.items() if step < steps.start]
    beside = beside if len(beside) >= FEWEST else [_number(loss) for step, loss in text.items() if step not in steps]
    beside = beside or [_number(loss) for loss in text.values()]
    level, of_text = statistics.median(beside), _quarter(text, steps, 0.75)
    evidence = [f"by the weights of before, these batches have {of_text:.4f}, others beside them {level:.4f}"]
    if math.isinf(level):
        words = "it is in the weights of that checkpoint already: their losses are no numbers"
        return Judgement(where="weights", words=words, evidence=tuple(evidence))
    margin = _margin(beside, len(steps))
    if of_text > level + margin or _quarter(text, steps, 0.25) < level - margin:
        words = "it is in the text: these batches are odd by the weights of before it already"
        return Judgement(where="text", words=words, evidence=tuple(evidence))
    limit = _limit(variants[AS_IT_WAS], steps, level + margin)
    again = {name: _quarter(losses, steps, 0.75) for name, losses in variants.items()}
    evidence += [f"{name}: {loss:.4f}" for name, loss in again.items()]
    then = _quarter(recorded, steps, 0.75) if any(step in steps for step in recorded) else None
    if then is not None:
        evidence.append(f"in the job: {then:.4f}")
    evidence.append(f"above {limit:.4f} it counts as risen")
    if again[AS_IT_WAS] > limit:
        where, words = _of_training({name: loss > limit for name, loss in again.items()})
        return Judgement(where=where, words=words, evidence=tuple(evidence))
    where, words = "nowhere", "nothing rises in these steps"
    if then is not None and then > limit:
        where, words = "device", f"it is in the device that the job had: run again on {device}, the loss does not rise"
    return Judgement(where=where, words=words, evidence=tuple(evidence))


def _of_training(rises: Mapping[str, bool]) -> tuple[str, str]:
    """It rose again on text that is as usual."""
    if not rises[TENTH]:
        moments = "; with Adam's moments begun anew it does not rise either" if not rises[RESET] else ""
        return "rate", f"it is in the learning rate: at a tenth of it the loss does not rise{moments}"
    if not rises[RESET]:
        return "optimizer", "it is in the optimizer's state: with Adam's moments begun anew the loss does not rise"
    return "weights", "it is in the weights of that checkpoint already: go further back"


def _limit(as_it_was: Losses, steps: range, by_text: float) -> float:
    """Above which the loss rose: from where it was right before these steps, as it falls from the checkpoint on, if so
    many steps were made since that this is known."""
    before = [_number(loss) for step, loss in sorted(as_it_was.items()) if step < steps.start][-LEVEL_STEPS:]
    if len(before) < FEWEST or math.isinf(statistics.median(before)):
        return by_text
    return min(by_text, statistics.median(before) + _margin(before, len(steps)))


def _margin(losses: Sequence[float], steps: int) -> float:
    """By which a quarter of so many steps is off, of their neighbours: a normal distribution's is two thirds of its
    deviation away, and the fewer steps there are, the more by chance."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return max((0.67 + NOISES / math.sqrt(steps)) * noise(finite), RISE / 2 * statistics.median(finite))


def _quarter(losses: Losses, steps: range, part: float) -> float:
    """The loss that this part of the steps is below, as few of them may have a spike; infinite where none was made."""
    found = sorted(_number(losses[step]) for step in steps if step in losses)
    return found[min(len(found) - 1, int(part * len(found)))] if found else math.inf


def _number(loss: float | None) -> float:
    """What is no number is above all others."""
    return loss if loss is not None and math.isfinite(loss) else math.inf
