"""What a sweep found: its table, and which change did what, with the differences that are seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptjobs import trials, verdict
from gptjobs.layout import Layout
from gptjobs.sweep import UNCHANGED, Sweep, params_in_words
from gptjobs.trials import Ranking, Tried
from gptjobs.verdict import Difference

_COMPARED = 8
"""of the best trials, which the best one is compared with"""


def rows(ranking: Ranking) -> list[dict[str, Any]]:
    """A trial each, best first, then those that are not ranked, by number."""
    found = []
    for place, each in enumerate(ranking.ranked, start=1):
        found.append({"rank": place, **_row(each), "why": None})
    for each, why in sorted(ranking.left_out, key=lambda pair: pair[0].trial.number):
        found.append({"rank": None, **_row(each), "why": why})
    return found


def _row(each: Tried) -> dict[str, Any]:
    last = each.last
    return {
        "trial": each.trial.number,
        "params": dict(each.trial.params),
        "state": each.state,
        "job": each.job if each.jobs else None,
        "step": last.step if last else None,
        "tokens": last.tokens if last else None,
        "val_loss": last.val_loss if last else None,
        "eval_context": last.context if last else None,
    }


def hyperparameters(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Those that any of the trials has, the seed last."""
    names = dict.fromkeys(name for each in rows for name in each["params"])
    return sorted(names, key=lambda name: name == "seed")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was compared with what: `one` is so much above the other."""

    one: str
    other: str
    difference: Difference | None
    """None where the windows of one of them were not reported"""

    def __str__(self) -> str:
        if self.difference is None:
            return f"{self.one}: not compared with {self.other}, whose windows are not on record"
        if not self.difference.is_seen:
            return f"{self.one}: {self.difference} against {self.other}"
        word = "worse" if self.difference.mean > 0 else "better"
        return f"{self.one}: {word} than {self.other} by {self.difference}"

    def to_dict(self) -> dict[str, Any]:
        found = self.difference
        numbers = {"mean": found.mean, "low": found.low, "high": found.high, "seeds": found.seeds} if found else None
        return {"one": self.one, "other": self.other, "difference": numbers}


def verdict_of(layout: Layout, sweep: Sweep, ranking: Ranking) -> list[Finding]:
    """Of the preset diagnose, each change against none; else the best trial against the next ones."""
    if sweep.changes:
        return _of_changes(layout, ranking.ranked)
    if not ranking.ranked:
        return []
    best, *others = ranking.ranked[: 1 + _COMPARED]
    name = f"trial {best.trial.number} ({best.trial})"
    return [
        Finding(
            one=name, other=f"trial {each.trial.number} ({each.trial})", difference=_difference(layout, [(best, each)])
        )
        for each in others
    ]


def _of_changes(layout: Layout, ranked: Sequence[Tried]) -> list[Finding]:
    """Pairs are of the same seed, and so of the same order of data."""
    by_arm: dict[str, dict[Any, Tried]] = {}
    for each in sorted(ranked, key=lambda each: each.trial.number):
        params = dict(each.trial.params)
        seed = params.pop("seed", None)
        by_arm.setdefault(params_in_words(params), {})[seed] = each
    control = by_arm.pop(UNCHANGED, {})
    found = []
    for words, of_seeds in by_arm.items():
        pairs = [(of_seeds[seed], control[seed]) for seed in of_seeds if seed in control]
        if pairs:
            found.append(Finding(one=words, other="the control", difference=_difference(layout, pairs)))
    return found


def basis(found: Sequence[Finding], confidence: float) -> str:
    """What the numbers of a verdict are, in words."""
    seeds = max((each.difference.seeds for each in found if each.difference), default=1)
    drawn = f"windows and {seeds} seeds" if seeds > 1 else "windows"
    alone = "" if seeds > 1 else " One seed alone does not tell how much training again would differ."
    return (
        f"In nats a token of validation loss, on the same held-out windows after as many tokens; in brackets the "
        f"{confidence:.0%} interval of a bootstrap over {drawn}.{alone}"
    )


def _difference(layout: Layout, pairs: Sequence[tuple[Tried, Tried]]) -> Difference | None:
    read = [(_windows(layout, one), _windows(layout, other)) for one, other in pairs]
    whole = [(one, other) for one, other in read if one and other and len(one) == len(other)]
    return verdict.difference(whole) if whole else None


def _windows(layout: Layout, each: Tried) -> list[float] | None:
    return trials.windows(layout, each.job, each.last.step) if each.last else None
