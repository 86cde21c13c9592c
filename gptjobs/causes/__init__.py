"""Why a loss stands still or rises: each rule looks at a case and names a possible cause, with the evidence and its
numbers, what would speak against it, and the command that tests it. The rules in words: docs/diagnosis.md."""

from collections.abc import Callable, Iterable

from gptjobs.case import Case
from gptjobs.causes import of_courses, of_rises
from gptjobs.causes.cause import PossibleCause

_RULES: tuple[Callable[[Case], Iterable[PossibleCause]], ...] = (
    of_rises.schedule, of_rises.rate_too_high, of_rises.odd_text, of_rises.end_of_epoch, of_rises.norm_first,
    of_rises.short_warmup, of_rises.of_a_log, of_courses.unigram, of_courses.rate_gone, of_courses.rate_too_low,
    of_courses.always_clipped, of_courses.noisy_batch, of_courses.few_tokens, of_courses.overfitting,
    of_courses.slowdown, of_courses.wrong_axis,
)  # fmt: skip


def possible_causes(case: Case) -> list[PossibleCause]:
    """The likeliest first."""
    found = [cause for rule in _RULES for cause in rule(case)]
    return sorted(found, key=lambda each: -each.strength)
