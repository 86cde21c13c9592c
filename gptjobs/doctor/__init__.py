"""What may be wrong with this host and its surroundings: a function a check, each worded for the user."""

from collections.abc import Iterator

from gptjobs.doctor import host, ports, root, server
from gptjobs.doctor.check import Check
from gptjobs.settings import Settings


def examine(settings: Settings) -> Iterator[Check]:
    """Every check, as it is made."""
    trains = host.is_installed("torch")
    yield host.packages()
    yield host.flower()
    yield from host.devices()
    told = yield from root.checks(settings.root, trains=trains)
    yield from server.checks(settings, trains=trains, root_answers=told)
    yield from ports.checks(settings.redis_url)
