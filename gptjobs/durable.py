"""Files that are there whole or not at all, and still there after a crash."""

import errno
import json
import math
import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

# what file systems without hard links (SMB, exFAT) answer
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


LEFT_BEHIND_S = 24 * 3600.0
"""A temporary file this old has no living writer, whoever that was."""


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder, durably, in one that is there: a mount point that is bare stays bare."""
    with suppress(FileExistsError):
        folder.mkdir()
        sync_folder(folder.parent)


def temporary(path: Path) -> Path:
    """A name beside `path` that no one else uses and that sweeping recognises."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _write_beside(path: Path, content: bytes, mode: int) -> Path:
    beside = temporary(path)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return beside


def write(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Put `content` at `path`, over what was there."""
    _write_beside(path, content, mode).replace(path)
    sync_folder(path.parent)


def create(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Put `content` at `path`; raises FileExistsError where something is there already."""
    beside = _write_beside(path, content, mode)
    try:
        place(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Put a copy of `source` at `target`, over what was there."""
    beside = temporary(target)
    try:
        shutil.copyfile(source, beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(target.parent)


def place(beside: Path, path: Path) -> None:
    """Move a finished file to its name; raises FileExistsError, and leaves it, where that is taken."""
    try:
        os.link(beside, path)
    except FileExistsError:
        # a network file system asks again where the answer was lost, and finds its own link
        if not os.path.samestat(path.lstat(), beside.lstat()):
            raise
        beside.unlink()
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, "taken", str(path)) from None
        beside.rename(path)
    else:
        beside.unlink()
    sync_folder(path.parent)


def sweep(folder: Path, *, older_than_s: float = LEFT_BEHIND_S, of: str = "*") -> None:
    """Remove temporary files that killed writers left in `folder`: of all files, or of the one named so."""
    for path in folder.glob(f".{of}.tmp"):
        with suppress(FileNotFoundError):  # its writer lives, or another one sweeps too
            if time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()


def without_nan(content: Any) -> Any:
    """The same with null for NaN and infinities, which JSON has not."""
    if isinstance(content, dict):
        return {name: without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(each) for each in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def to_json(value: Any) -> bytes:
    """JSON for people and programs; raises ValueError for NaN and infinities, which JSON has not."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
