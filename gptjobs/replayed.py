"""What steps that were run again say: whether a spike is in the text, the optimizer, the rate or the device."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptjobs.diagnosis import NOISES, RISE, noise

AS_IT_WAS, RESET, TENTH = "as it was", "moments reset", "a tenth of the rate"
"""the variants that are run"""
FEWEST = 8
"""batches beside the steps, to hold theirs against"""

Losses = Mapping[int, float]
"""by step"""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """`where`: text, optimizer, rate, weights, device or nowhere; and why."""

    where: str
    words: str
    evidence: tuple[str, ...]


def judge(recorded: Losses, text: Losses, variants: Mapping[str, Losses], steps: range, device: str) -> Judgement:
    """Of the job's own losses, those of the steps' batches by the weights of before, and those of each variant."""
    beside = [loss for step, loss in text.items() if step < steps.start]
    beside = beside if len(beside) >= FEWEST else [loss for step, loss in text.items() if step not in steps]
    beside = [loss for loss in beside if math.isfinite(loss)]
    if not beside:
        words = "it is in the weights of that checkpoint already: they have no finite loss"
        return Judgement(where="weights", words=words, evidence=())
    level, margin = _level(beside, len(steps))
    high, low = _quarter(text, steps, 0.75), _quarter(text, steps, 0.25)
    odd = high if high > level + margin else low if low < level - margin else None
    of_text = high if odd is None else odd
    evidence = [f"by the weights of before, these batches have {of_text:.4f}, others beside them {level:.4f}"]
    if odd is not None:
        words = "it is in the text: these batches are odd by the weights of before it already"
        return Judgement(where="text", words=words, evidence=tuple(evidence))
    again = {name: _quarter(losses, steps, 0.75) for name, losses in variants.items()}
    evidence += [f"{name}: {loss:.4f}" for name, loss in again.items()]
    rises = {name: loss > level + margin for name, loss in again.items()}
    then = _quarter(recorded, steps, 0.75) if any(step in steps for step in recorded) else None
    if then is not None:
        evidence.append(f"in the job: {then:.4f}")
    if not rises[AS_IT_WAS]:
        if then is not None and then > level + margin:
            words = f"it is in the device that the job had: run again on {device}, the loss does not rise"
            return Judgement(where="device", words=words, evidence=tuple(evidence))
        return Judgement(where="nowhere", words="nothing rises in these steps", evidence=tuple(evidence))
    where, words = _of_training(rises)
    return Judgement(where=where, words=words, evidence=tuple(evidence))


def _of_training(rises: Mapping[str, bool]) -> tuple[str, str]:
    """It rose again on text that is as usual."""
    if not rises[TENTH]:
        moments = "; with Adam's moments begun anew it does not rise either" if not rises[RESET] else ""
        return "rate", f"it is in the learning rate: at a tenth of it the loss does not rise{moments}"
    if not rises[RESET]:
        return "optimizer", "it is in the optimizer's state: with Adam's moments begun anew the loss does not rise"
    return "weights", "it is in the weights of that checkpoint already: go further back"


def _level(losses: Sequence[float], steps: int) -> tuple[float, float]:
    """The median of these losses, and from where on a quarter of so many steps is off: a normal distribution's is two
    thirds of its deviation away, and the fewer steps there are, the more by chance."""
    level = statistics.median(losses)
    return level, max((0.67 + NOISES / math.sqrt(steps)) * noise(losses), RISE / 2 * level)


def _quarter(losses: Losses, steps: range, part: float) -> float:
    """The loss that this part of the steps is below: few of them may have a spike. What is no number is infinite."""
    found = sorted(
        loss if loss == loss else math.inf for step in steps if (loss := losses.get(step, math.nan)) is not None
    )
    return found[min(len(found) - 1, int(part * len(found)))]
