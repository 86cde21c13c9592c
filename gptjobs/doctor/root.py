"""The storage root: there, durable, with room; and what lies in it.

All that touches it is asked of a process of its own: a mount whose server is gone hangs who asks.
"""

import json
import os
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

from gptjobs import durable, storage
from gptjobs.data import encoding
from gptjobs.doctor.check import Check, Verdict, problem, skipped, warning
from gptjobs.doctor.child import NoAnswer, answer
from gptjobs.errors import GptjobsError, NotFound
from gptjobs.layout import Layout

LIMIT_S = 20.0
"""for a file system that is slow, and is there"""
CHECKPOINT_BYTES = 1_500_000_000
"""of gpt2, the smallest of GPT-2's sizes, with the optimizer's moments"""
ROOM_FOR = 3
"""checkpoints: with room for fewer, a job may end for want of it"""
FILES_AT_LEAST = 1000
"""that can still be made: a job makes some dozens"""
CLOCKS_APART_S = 60.0
MOUNTS = Path("/proc/self/mounts")
_NETWORK_MOUNTS = ("nfs", "cifs", "smb", "sshfs", "ceph", "lustre", "9p", "virtiofs", "glusterfs")
_IN_MEMORY = ("tmpfs", "ramfs")


def checks(folder: Path, *, trains: bool) -> Generator[Check, None, bool]:
    """What a process of its own finds, as far as it comes. Returns whether the root answers."""
    try:
        told, hangs = answer("gptjobs.doctor", str(folder), limit_s=LIMIT_S), None
    except NoAnswer as error:
        told, hangs = error.told, error
    for line in told.splitlines():
        made = Check.from_dict(json.loads(line))
        if made.verdict is Verdict.WARNING and made.name == "root" and not trains:
            made = skipped("root", made.says)  # a client needs none
        yield made
    if hangs is not None:
        where = "a file system that hangs: its server is gone, or the network to it" if hangs.hung else "see above"
        yield problem("root", f"{folder} could not be looked at: {hangs}; {where}", _remount(folder))
    return hangs is None


def _remount(folder: Path) -> str:
    return f"findmnt -T {folder}; ping its server; sudo umount -f -l the mount, and mount it again"


def examine(folder: Path) -> Iterator[Check]:
    layout = Layout(folder)
    if not layout.is_there:
        yield warning(
            "root",
            f"{folder} is no storage root: jobs can be submitted, and the worker that takes one checks its files",
            "--root DIR or GPTJOBS_ROOT; gptjobs up makes one of the working directory",
        )
        return
    yield from writing(layout)
    yield from mount(folder)
    yield from room(layout)
    yield encoding_file(layout)


def writing(layout: Layout) -> Iterator[Check]:
    """Whether each of the root's folders takes files as they are written: checkpoints are renamed into their place and
    synced; an attempt's file is made by one host alone."""
    links = True
    for folder in (layout.checkpoints, layout.outputs, layout.logs, layout.shared_data):
        try:
            links = _write_test(folder) and links
        except OSError as error:
            hint = f"ls -ld {folder}; df -h {folder}; findmnt -T {folder}"
            yield problem("root", f"nothing can be written to {folder}: {error.strerror or error}", hint)
            return
    how = "hard links" if links else "no hard links, so names are taken by renaming"
    yield Check(name="root", says=f"{layout.root} (marker {storage.identity(layout)}) is writable, with {how}")


def _write_test(folder: Path) -> bool:
    """Write, sync and rename a file, as a checkpoint is, and make one that is there already, which must fail; returns
    whether the file system has hard links."""
    path, other = durable.temporary(folder / "doctor"), durable.temporary(folder / "doctor")
    try:
        durable.write(path, b"doctor")
        if path.read_bytes() != b"doctor":
            raise OSError("what was written is not what is read")
        with suppress(FileExistsError):
            durable.create(path, b"another")
            raise OSError("a file is made where one of that name is")
        with suppress(OSError):
            os.link(path, other)
        return other.exists()
    finally:
        path.unlink(missing_ok=True)
        other.unlink(missing_ok=True)


def mount(folder: Path) -> Iterator[Check]:
    """What the root lies on, where Linux tells, and whether its server's clock is ours."""
    point, kind, options = _mount_of(folder)
    if kind in _IN_MEMORY:
        yield warning("mount", f"{point} is in memory: a restart of the host loses the jobs", "--root DIR on a disk")
    if not any(each in kind for each in _NETWORK_MOUNTS):
        return
    says = f"the root is on a network mount ({kind}) at {point}"
    if "soft" in options:
        hint = f"mount it with hard in the place of soft in /etc/fstab; sudo mount -o remount,hard {point}"
        yield warning("mount", f"{says} that gives writes up when its server is slow: soft", hint)
    else:
        yield Check(name="mount", says=says)
    yield from clock(folder)


def _mount_of(folder: Path) -> tuple[str, str, list[str]]:
    """The mount point that the folder lies under, its kind and options; empty where that is not told."""
    if not MOUNTS.is_file():
        return "", "", []
    there = folder.resolve()
    mounts = [line.split()[1:4] for line in MOUNTS.read_text().splitlines()]
    around = [each for each in mounts if there.is_relative_to(_unescaped(each[0]))]
    point, kind, options = max(reversed(around), key=lambda each: len(each[0]))  # the last one covers those before
    return _unescaped(point), kind, options.split(",")


def _unescaped(point: str) -> str:
    """As the table writes it, a space is \\040."""
    return point.encode().decode("unicode_escape").encode("latin-1").decode(errors="replace")


def clock(folder: Path) -> Iterator[Check]:
    """Only where the server's, by the time that it gives a file, is another than this host's."""
    layout = Layout(folder)
    path = durable.temporary(layout.outputs / "doctor")
    try:
        durable.write(path, b"doctor")
        apart = abs(path.stat().st_mtime - time.time())
    except OSError:
        return  # told above
    finally:
        path.unlink(missing_ok=True)
    if apart > CLOCKS_APART_S:
        says = f"this host's clock and the file server's are {apart:.0f} s apart: times of files mislead"
        yield warning("clocks", says, "timedatectl set-ntp true, on both")


def room(layout: Layout) -> Iterator[Check]:
    free = shutil.disk_usage(layout.checkpoints).free
    fit = free // CHECKPOINT_BYTES
    says = f"{free / 1e9:,.1f} GB free: room for {fit:,} checkpoints of gpt2"
    if fit < ROOM_FOR:
        yield warning("room", says, f"gptjobs checkpoints prune --help; du -sh {layout.checkpoints}/*")
    else:
        yield Check(name="room", says=says)
    for folder in (layout.checkpoints, layout.outputs):
        found = os.statvfs(folder)
        if found.f_files and found.f_favail < FILES_AT_LEAST:  # some file systems have no limit, and say 0
            says = f"only {found.f_favail:,} more files can be made in {folder}: its inodes are used up"
            yield warning("inodes", says, f"df -i {folder}; du --inodes -d 2 {layout.root}")
            return


def encoding_file(layout: Layout) -> Check:
    try:
        encoding.read(layout)
    except NotFound as error:
        return warning(
            "encoding", f"{error.message}: only --encoding bytes is at hand", error.hint or "gptjobs data encoding"
        )
    except GptjobsError as error:
        return problem("encoding", error.message, error.hint or "gptjobs data encoding")
    return Check(name="encoding", says=f"{encoding.NAME} is in place, with the right SHA-256")
