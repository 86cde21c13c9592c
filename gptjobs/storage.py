"""The storage root as a place that can be away, be another one, or be full.

A marker in the root has its id, and Redis knows the id of the root that its jobs have their files in. So a mount
point that is bare, or another disk's, is told from the root, and nothing is written to it.
"""

import errno
import json
from dataclasses import replace

from gptjobs.errors import GptjobsError, NoSpace, OutOfMemory, Refused, StorageAway
from gptjobs.job import Cause
from gptjobs.layout import Layout

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_AWAY = {
    errno.EIO, errno.ENXIO, errno.ENODEV, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ESTALE, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED, errno.ETIMEDOUT,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
}  # fmt: skip


def identity(layout: Layout) -> str | None:
    """The id that the root's marker has; None where there is no marker that can be read."""
    try:
        return str(json.loads(layout.marker.read_bytes())["id"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def identified(layout: Layout) -> Layout:
    """The layout with the id that the marker has now."""
    return replace(layout, id=identity(layout))


def check(layout: Layout) -> None:
    """Raise StorageAway where the root with the layout's id is not here, or not any more."""
    if layout.id is None:
        return
    found = identity(layout)
    if found != layout.id:
        what = "it is bare, or not mounted" if found is None else "another storage root is there"
        raise StorageAway(f"the storage root does not work: {layout.root} has no marker of it; {what}")


def expect(layout: Layout, id: str | None) -> None:
    """Raise Refused where this folder is not the storage root `id`, that of Redis's jobs; a Redis without jobs has
    none yet."""
    found = identity(layout)
    if id is None or found == id:
        return
    if found is None:
        what = f"{layout.root} is not the storage root of the jobs in Redis: the marker {layout.marker.name} is missing"
    else:
        what = f"{layout.root} is a storage root, but not that of the jobs in Redis"
    raise Refused(
        f"{what}. Either it is not mounted here, or another folder was named",
        hint=f"ls -a {layout.root}; mount it, or name it with --root; another root needs a Redis of its own",
    )


def cause_of(error: Exception) -> Cause:
    """Why an attempt ended that this error ended."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, NoSpace) or number in _FULL:
        return Cause.NO_SPACE
    if isinstance(error, StorageAway) or number in _AWAY:
        return Cause.STORAGE
    if isinstance(error, OutOfMemory):
        return Cause.OUT_OF_MEMORY
    if isinstance(error, GptjobsError) and error.exit_code > 1:
        return Cause.REFUSED
    return Cause.ERROR


def told(error: OSError, what: str, hint: str | None = None) -> GptjobsError:
    """The system's error as one that users read: `what` could not be done, and why; `hint` says what to do."""
    kind = {Cause.NO_SPACE: NoSpace, Cause.STORAGE: StorageAway}.get(cause_of(error), GptjobsError)
    return kind(f"{what}: {error.strerror or error}", hint=hint)
