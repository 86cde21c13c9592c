"""A possible cause, as a rule finds it."""

from dataclasses import dataclass


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
