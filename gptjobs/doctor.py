"""What may be wrong with this host and its surroundings: a function a check, each worded for the user."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import gptjobs
from gptjobs import durable, storage
from gptjobs.data import encoding
from gptjobs.errors import GptjobsError, NotFound, Refused
from gptjobs.layout import Layout
from gptjobs.settings import Settings, public
from gptjobs.store import Server, Store

WORKER_PACKAGES = ("torch", "numpy", "tiktoken", "matplotlib", "safetensors", "psutil")
CHECKPOINT_BYTES = 1_500_000_000
"""of gpt2, the smallest of GPT-2's sizes, with the optimizer's moments"""
ROOM_FOR = 3
"""checkpoints: with room for fewer, a job may end for want of it"""
REDIS_AT_LEAST = (6, 2)
CLOCKS_APART_S = 60.0
DEVICE_LIMIT_S = 60.0
_NETWORK_MOUNTS = ("nfs", "cifs", "smb", "sshfs", "ceph", "lustre", "9p", "virtiofs", "glusterfs")


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was found, and what to type where that is not well."""

    name: str
    verdict: Verdict = Verdict.OK
    says: str
    hint: str | None = None


def examine(settings: Settings) -> Iterator[Check]:
    """Every check, as it is made."""
    yield packages()
    yield flower()
    yield from devices()
    yield from root(settings.root)
    yield from redis(settings)


def packages() -> Check:
    """Whether this installation is a client's or a worker's, and whole."""
    here = f"gptjobs {gptjobs.__version__}, Python {platform.python_version()}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("celery", "redis"))
    there = [name for name in WORKER_PACKAGES if _is_installed(name)]
    if not there:
        return Check(name="packages", says=f"{here}, {versions}: a client, which submits jobs and trains none")
    missing = [name for name in WORKER_PACKAGES if name not in there]
    if missing:
        return Check(
            name="packages",
            verdict=Verdict.PROBLEM,
            says=f"{here}: a worker here would lack {', '.join(missing)}",
            hint="pip install 'gptjobs[worker]'",
        )
    of_worker = ", ".join(f"{name} {version(name)}" for name in there)
    return Check(name="packages", says=f"{here}, {versions}, {of_worker}")


def flower() -> Check:
    if _is_installed("flower"):
        return Check(name="flower", says=f"flower {version('flower')}")
    return Check(name="flower", says="not installed: gptjobs up has no web page (pip install 'gptjobs[local]')")


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def devices() -> Iterator[Check]:
    """What a worker would offer here, and whether torch can use it. Asked of processes of their own, as this one
    imports neither the worker nor torch."""
    if not _is_installed("torch"):
        return
    try:
        slots, best = _answer("worker.host").split(), _answer("worker.trainer.device")
    except subprocess.SubprocessError as error:
        said = (str(getattr(error, "stderr", None) or error).strip().splitlines() or ["nothing"])[-1]
        yield Check(
            name="devices",
            verdict=Verdict.PROBLEM,
            says=f"torch does not work here: {said}",
            hint="pip install --force-reinstall torch",
        )
        return
    offered = slots[0].partition(":")[0]
    if offered != best:
        yield Check(
            name="devices",
            verdict=Verdict.PROBLEM,
            says=f"a worker would offer {' '.join(slots)}, but the torch installed here can only use {best}",
            hint=f"pip install a torch built for {offered}, or gptjobs worker start --device {best}",
        )
        return
    yield Check(name="devices", says=f"a worker here offers {' '.join(slots)}, and torch can use it")


def _answer(module: str) -> str:
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEVICE_LIMIT_S, check=True)
    return done.stdout.strip()


def root(folder: Path) -> Iterator[Check]:
    """The storage root: there, writable, durable, with room; and what lies in it."""
    layout = Layout(folder)
    if not layout.is_there:
        yield Check(
            name="root",
            verdict=Verdict.WARNING,
            says=f"{folder} is no storage root: jobs can be submitted, and the worker that takes one checks its files",
            hint="--root DIR or GPTJOBS_ROOT; gptjobs up makes one of the working directory",
        )
        return
    try:
        links = _write_test(layout.checkpoints)
    except OSError as error:
        yield Check(
            name="root",
            verdict=Verdict.PROBLEM,
            says=f"nothing can be written to {layout.checkpoints}: {error.strerror}",
            hint=f"ls -ld {layout.checkpoints}; df -h {folder}",
        )
    else:
        mount = _network_mount(folder)
        where = f", on a network mount ({mount})" if mount else ""
        how = "hard links" if links else "no hard links, so names are taken by renaming"
        yield Check(name="root", says=f"{folder} is writable, with {how}{where}")
    yield room(layout)
    yield encoding_file(layout)


def _write_test(folder: Path) -> bool:
    """Write, sync and rename a file, as a checkpoint is; returns whether the file system has hard links."""
    path = durable.temporary(folder / "doctor")
    other = durable.temporary(folder / "doctor")
    try:
        durable.write(path, b"doctor")
        with suppress(OSError):
            os.link(path, other)
        return other.exists()
    finally:
        path.unlink(missing_ok=True)
        other.unlink(missing_ok=True)


def _network_mount(folder: Path) -> str | None:
    """The kind of a network file system that the folder lies on, where Linux tells; else None."""
    table = Path("/proc/self/mounts")
    if not table.is_file():
        return None
    there = folder.resolve()
    mounts = [line.split()[1:3] for line in table.read_text().splitlines()]
    around = [(point, kind) for point, kind in mounts if there.is_relative_to(point)]
    kind = max(around, key=lambda each: len(each[0]))[1] if around else ""
    return kind if any(each in kind for each in _NETWORK_MOUNTS) else None


def room(layout: Layout) -> Check:
    free = shutil.disk_usage(layout.checkpoints).free
    fit = free // CHECKPOINT_BYTES
    says = f"{free / 1e9:,.1f} GB free: room for {fit:,} checkpoints of gpt2"
    if fit < ROOM_FOR:
        return Check(name="room", verdict=Verdict.WARNING, says=says, hint=f"make room at {layout.root}")
    return Check(name="room", says=says)


def encoding_file(layout: Layout) -> Check:
    try:
        encoding.read(layout)
    except NotFound as error:
        says = f"{error.message}: only --encoding bytes is at hand"
        return Check(name="encoding", verdict=Verdict.WARNING, says=says, hint=error.hint)
    except GptjobsError as error:
        return Check(name="encoding", verdict=Verdict.PROBLEM, says=error.message, hint=error.hint)
    return Check(name="encoding", says=f"{encoding.NAME} is in place, with the right SHA-256")


def redis(settings: Settings) -> Iterator[Check]:
    """Redis: there, fit for a queue; and the workers on it."""
    try:
        store = Store(settings.redis_url)
        server = store.server()
        yield Check(
            name="redis",
            says=f"{public(settings.redis_url)} answers in {server.ping_s * 1000:.1f} ms, version {server.version}",
        )
        yield from fitness(server, settings.redis_url)
        yield from same_root(Layout(settings.root), store)
        yield from workers(store)
    except GptjobsError as error:
        yield Check(name="redis", verdict=Verdict.PROBLEM, says=error.message, hint=error.hint)


def fitness(server: Server, url: str) -> Iterator[Check]:
    """Only what is not well."""
    if tuple(int(each) for each in server.version.split(".")[:2]) < REDIS_AT_LEAST:
        at_least = ".".join(map(str, REDIS_AT_LEAST))
        yield Check(
            name="version",
            verdict=Verdict.PROBLEM,
            says=f"Redis {server.version} is too old",
            hint=f"{at_least} or later",
        )
    if server.eviction != "noeviction":
        yield Check(
            name="eviction",
            verdict=Verdict.PROBLEM,
            says=f"Redis drops records where its memory is full: maxmemory-policy is {server.eviction}",
            hint="redis-cli config set maxmemory-policy noeviction",
        )
    if not server.appendonly:
        yield Check(
            name="appendonly",
            verdict=Verdict.WARNING,
            says="Redis may forget the queue when it is killed: appendonly is off",
            hint="redis-cli config set appendonly yes",
        )
    where = urlsplit(url)
    if where.password is None and where.hostname not in ("127.0.0.1", "::1", "localhost"):
        yield Check(
            name="password",
            verdict=Verdict.WARNING,
            says="who reaches Redis can submit jobs: it has no password",
            hint="set requirepass, and GPTJOBS_REDIS_URL=redis://:PASSWORD@HOST:6379/0",
        )
    apart = abs(server.seconds - time.time())
    if apart > CLOCKS_APART_S:
        yield Check(
            name="clocks",
            verdict=Verdict.WARNING,
            says=f"this host's clock and Redis's are {apart:.0f} s apart: only the times shown mislead",
            hint="timedatectl set-ntp true",
        )


def same_root(layout: Layout, store: Store) -> Iterator[Check]:
    """Whether the jobs in Redis have their files here; only what is not well."""
    if not layout.is_there:
        return
    try:
        storage.expect(layout, store.root())
    except Refused as error:
        yield Check(name="marker", verdict=Verdict.PROBLEM, says=error.message, hint=error.hint)


def workers(store: Store) -> Iterator[Check]:
    there = store.workers()
    if there:
        yield Check(name="workers", says=", ".join(f"{each.name} ({' '.join(each.slots)})" for each in there))
    else:
        yield Check(
            name="workers", verdict=Verdict.WARNING, says="no worker is there: jobs wait", hint="gptjobs worker start"
        )
    for each in there:
        if each.version != gptjobs.__version__:
            yield Check(
                name="versions",
                verdict=Verdict.WARNING,
                says=f"{each.name} is gptjobs {each.version}, here is {gptjobs.__version__}",
                hint="install the same one everywhere",
            )
    offered = {queue for each in there for queue in each.queues}
    unheard = sorted(
        (each.spec.wants, each.spec.worker_command)
        for each in store.waiting()
        if there and each.spec.queue not in offered
    )
    for wants, start in dict.fromkeys(unheard):
        yield Check(
            name="queues",
            verdict=Verdict.WARNING,
            says=f"jobs that wait for {wants}, which no worker offers: {unheard.count((wants, start))}",
            hint=start,
        )
