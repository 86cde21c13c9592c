"""What a check found, and what to type where that is not well."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    OK = "ok"
    SKIPPED = "skipped"
    """of no concern to this host"""
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True)
class Check:
    name: str
    verdict: Verdict = Verdict.OK
    says: str
    hint: str | None = None

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> "Check":
        return Check(**{**record, "verdict": Verdict(record["verdict"])})


def skipped(name: str, says: str) -> Check:
    return Check(name=name, verdict=Verdict.SKIPPED, says=says)


def warning(name: str, says: str, hint: str) -> Check:
    return Check(name=name, verdict=Verdict.WARNING, says=says, hint=hint)


def problem(name: str, says: str, hint: str) -> Check:
    return Check(name=name, verdict=Verdict.PROBLEM, says=says, hint=hint)
