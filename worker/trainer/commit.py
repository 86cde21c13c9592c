"""A checkpoint's file and then its manifest, each durable before it has its name."""

import hashlib
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gptjobs import durable, storage
from gptjobs.checkpoint import Manifest, manifest_path
from gptjobs.layout import Layout, checkpoint_name
from gptjobs.progress import CheckpointWritten

_LEAST_PRIORITY = 19
"""as `nice` counts: behind all else that wants a processor"""
_CHUNK_BYTES = 1 << 22
"""written, and hashed while the processor's cache has them"""


class GivenUp(Exception):
    """Another thread writes this checkpoint now."""


def commit(
    layout: Layout, job: str, manifest: Manifest, content: dict[str, Any], given_up: threading.Event | None = None
) -> CheckpointWritten:
    """Write a checkpoint; with `given_up` on what training leaves of the processors, and until that is set: then raises
    GivenUp. Raises NoSpace or StorageAway where the storage does not take it; what was there before stays as it is."""
    folder = layout.job_checkpoints(job)
    try:
        storage.check(layout)
        durable.make_folder(folder)
        path, size, sha256 = _write_tensors(folder, manifest, content, given_up)
        _write_manifest(path, replace(manifest, size=size, sha256=sha256, written_at=time.time()))
    except OSError as error:
        what = f"the checkpoint of step {manifest.step} could not be written"
        hint = f"free space in {folder}; it goes on from {manifest.parent or 'the start'}"
        raise storage.told(error, what, hint) from error
    return CheckpointWritten(
        name=path.name, step=manifest.step, tokens=manifest.tokens, size=size, val_loss=manifest.losses.val_loss
    )


def _write_tensors(
    folder: Path, manifest: Manifest, content: dict[str, Any], given_up: threading.Event | None
) -> tuple[Path, int, str]:
    """Write the `.pt` under a name that no file has; the timestamp moves on where one has it."""
    beside = durable.temporary(folder / "checkpoint.pt")
    try:
        with beside.open("xb", buffering=0) as file:
            hashed = Hashed(file, given_up)
            try:
                torch.save(content, hashed)  # type: ignore[arg-type]  # only write is called
            except RuntimeError:
                if hashed.error is not None:  # torch closes its zip all the same, and says only that it could not
                    raise hashed.error from None
                raise
            os.fsync(file.fileno())
        now = time.time()
        while True:
            path = folder / checkpoint_name(manifest.data_name, manifest.step, now)
            now += 1.0
            if manifest_path(path).exists():
                continue
            with suppress(FileExistsError):
                durable.place(beside, path)
                return path, hashed.size, hashed.sha256.hexdigest()
    finally:
        beside.unlink(missing_ok=True)


def _write_manifest(path: Path, manifest: Manifest) -> None:
    """Commit the file; one that cannot be committed only takes space."""
    try:
        durable.create(manifest_path(path), durable.to_json(manifest.to_dict()))
    except OSError:
        with suppress(OSError):
            if not manifest_path(path).exists():
                path.unlink()
        raise


class Hashed:
    """Hashes what is written on its way to the file, so that nothing is read again."""

    def __init__(self, file: Any, given_up: threading.Event | None) -> None:
        self._file, self._given_up = file, given_up
        self.sha256 = hashlib.sha256()
        self.size = 0
        self.error: OSError | GivenUp | None = None
        """of the first write that failed"""

    def write(self, data: Any) -> int:
        if self._given_up is not None and self.size == 0:
            _give_way()
        view = memoryview(data).cast("B")
        for first in range(0, len(view), _CHUNK_BYTES):
            self._write_chunk(view[first : first + _CHUNK_BYTES])
        return len(view)

    def _write_chunk(self, chunk: memoryview) -> None:
        written = 0
        try:
            if self._given_up is not None and self._given_up.is_set():
                raise GivenUp
            while written < len(chunk):
                written += self._file.write(chunk[written:])
        except (OSError, GivenUp) as error:
            self.error = self.error or error
            raise
        self.sha256.update(chunk)
        self.size += len(chunk)

    def flush(self) -> None:
        pass


def _give_way() -> None:
    """Let this thread take what training leaves of the processors; only Linux has priorities for threads. Not before
    the pickle is made: a thread that waits for a processor must not hold Python's lock meanwhile."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_PRIORITY)
