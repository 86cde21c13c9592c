"""What a worker says of itself in Redis: what it offers, on which devices, and what it does."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gptjobs.config import known
from gptjobs.job import is_time, plain, whole

_TEXT_LENGTH = 100
"""characters of a product, at most"""
_PACKAGES = ("torch", "python")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+-]{0,40}")
_LARGEST = 2**53
"""bytes; more has nobody"""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What is behind a slot: its product, and its memory in bytes. That of a CPU or of Metal is the host's."""

    name: str
    product: str | None = None
    memory: int | None = None
    memory_free: int | None = None


@dataclass(frozen=True, kw_only=True)
class Presence:
    """What a worker offers. `slots` are devices, `busy` of them in use; `schema` the newest job that it can read;
    `versions` those that count besides its own; `memory` is the host's, in bytes.

    What a worker of an earlier version, or one that has just started, does not tell is empty or None."""

    name: str
    host: str
    version: str
    schema: int = 1
    queues: list[str]
    slots: list[str]
    busy: int
    jobs: list[str]
    started_at: float
    devices: list[Device] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    memory: int | None = None
    memory_free: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> "Presence":
        """Raises TypeError or ValueError for a record that is none. What is only for the eye is left out where it
        cannot be right."""
        made = Presence(**known(Presence.__dataclass_fields__, record))
        lists = (made.queues, made.slots, made.jobs)
        words = [made.name, made.host, made.version, *(each for some in lists for each in some)]
        if not all(isinstance(each, str) and each.isprintable() for each in words):
            raise ValueError("a worker's record with other than words in it")
        if not is_time(made.started_at):
            raise ValueError("a worker's record without its time")
        return replace(
            made,
            schema=int(made.schema),
            busy=whole(str(made.busy)),
            devices=_devices(made.devices, made.slots),
            versions=_versions(made.versions),
            memory=_bytes(made.memory),
            memory_free=_bytes(made.memory_free),
        )


def _devices(found: object, slots: list[str]) -> list[Device]:
    """Those of the worker's slots that it tells more about."""
    records = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    return [
        Device(
            name=each["name"],
            product=_text(each.get("product")),
            memory=_bytes(each.get("memory")),
            memory_free=_bytes(each.get("memory_free")),
        )
        for each in records
        if each.get("name") in slots
    ]


def _versions(found: object) -> dict[str, str]:
    """Those that have the form of one: they stand in commands that users are told to type."""
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in pairs if name in _PACKAGES and is_version(value)}


def is_version(value: object) -> bool:
    return isinstance(value, str) and bool(_VERSION.fullmatch(value))


def _text(value: object) -> str | None:
    return (plain(value)[:_TEXT_LENGTH] or None) if isinstance(value, str) else None


def _bytes(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _LARGEST else None
