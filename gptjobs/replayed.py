"""What steps that were run again say: whether a spike is in the text, the optimizer, the rate or the device."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptjobs.diagnosis import OUTLIER, OUTLIER_NOISES, noise

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
    level, margin = _level(beside or list(text.values()))
    of_text = _middle(text, steps)
    evidence = [f"by the weights of before, these batches have {of_text:.4f}, others beside them {level:.4f}"]
    if abs(of_text - level) > margin:
        return Judgement(
            where="text", evidence=tuple(evidence),
            words="it is in the text: these batches are odd by the weights of before it already",
        )  # fmt: skip
    again = {name: _middle(losses, steps) for name, losses in variants.items()}
    evidence += [f"{name}: {loss:.4f}" for name, loss in again.items()]
    rises = {name: loss > level + margin for name, loss in again.items()}
    then = _middle(recorded, steps) if any(step in steps for step in recorded) else None
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


def _level(losses: Sequence[float]) -> tuple[float, float]:
    level = statistics.median(losses)
    return level, max(OUTLIER_NOISES * noise(losses), OUTLIER * level)


def _middle(losses: Losses, steps: range) -> float:
    """Of those that are numbers; infinite where none is."""
    found = [losses[step] for step in steps if losses.get(step) is not None and losses[step] == losses[step]]
    return statistics.median(found) if found else float("inf")
