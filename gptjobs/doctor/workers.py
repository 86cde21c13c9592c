"""The workers that Redis knows: whether any is there, hears the jobs that wait, and has the versions of the others."""

import platform
from collections.abc import Iterator
from importlib.metadata import version

import gptjobs
from gptjobs.doctor.check import Check, warning
from gptjobs.presence import Presence, is_version
from gptjobs.store import Store


def checks(store: Store, *, trains: bool) -> Iterator[Check]:
    there = store.workers()
    if not there:
        yield warning("workers", "no worker is there: jobs wait", "gptjobs worker start")
        return
    yield Check(name="workers", says=", ".join(f"{each.name} ({' '.join(each.slots)})" for each in there))
    for each in there:
        if each.version != gptjobs.__version__:
            says = f"{each.name} is gptjobs {each.version}, here is {gptjobs.__version__}"
            yield warning("versions", says, f"pip install 'gptjobs=={_newer(each.version)}', there and here")
    here = {"here": {"torch": version("torch"), "python": platform.python_version()}} if trains else {}
    yield from _unlike({**{each.name: each.versions for each in there}, **here})
    yield from _unheard(store, there)


def _newer(other: str) -> str:
    """Of what the other says and this version: it is to be typed."""
    return max((each for each in (gptjobs.__version__, other) if is_version(each)), key=_numbers)


def _numbers(version: str) -> list[int]:
    return [int(each) if each.isdigit() else 0 for each in version.split(".")]


def _unlike(versions: dict[str, dict[str, str]]) -> Iterator[Check]:
    """A job goes on exactly, to the bit, only on the same torch; and only Pythons of one kind take the same torch."""
    for package, parts, hint in (("torch", 3, "pip install 'torch=={}' on each"), ("python", 2, "Python {} on each")):
        found: dict[str, list[str]] = {}
        for name, told in versions.items():
            if package in told:
                release = ".".join(told[package].partition("+")[0].split(".")[:parts])
                found.setdefault(release, []).append(name)
        if len(found) > 1:
            each = "; ".join(f"{release} on {', '.join(names)}" for release, names in sorted(found.items()))
            newest = max(found, key=_numbers)
            yield warning("versions", f"not all have the same {package}: {each}", hint.format(newest))


def _unheard(store: Store, there: list[Presence]) -> Iterator[Check]:
    """Jobs that wait for what no worker offers."""
    offered = {queue for each in there for queue in each.queues}
    unheard = sorted(
        (each.spec.wants, each.spec.worker_command) for each in store.waiting() if each.spec.queue not in offered
    )
    for wants, start in dict.fromkeys(unheard):
        says = f"jobs that wait for {wants}, which no worker offers: {unheard.count((wants, start))}"
        yield warning("queues", says, start)
