"""Checkpoints of other programs, adopted: a manifest says what is in the file and where each fact comes from.

The file stays as it is and where it is; one from outside the storage root is copied into it, as other hosts see
only the root.
"""

import errno
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gptjobs import checkpoint, durable, foreign, storage
from gptjobs.checkpoint import Checkpoint, Cursor, Manifest
from gptjobs.config import Overrides
from gptjobs.errors import NotFound, Refused
from gptjobs.facts import Facts
from gptjobs.layout import Layout

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def adopt(
    layout: Layout, path: Path, said: Overrides | None = None, advance: Callable[[int], None] = lambda count: None
) -> Checkpoint:
    """A checkpoint of the file or Hugging Face folder `path`, not yet committed. `said` is what the user tells
    of what the file does not; `advance` is told the bytes read. Raises Refused where the file is no GPT-2, or
    where what it leaves open must be told."""
    path = foreign.weights_in(path)
    contents = foreign.describe(path)
    if contents.layout == foreign.OWN:
        raise NotFound(
            f"{path} has no manifest {checkpoint.manifest_path(path).name} beside it, so it was never committed",
            hint="copied from elsewhere: copy its manifest too; else: gptjobs checkpoints list",
        )
    facts = Facts(contents, path, said or {})
    settled = facts.settled(facts.model())
    sha256 = checkpoint.sha256_of(path, advance)
    manifest = Manifest(
        job=None,
        token=0,
        step=facts.step(),
        tokens=facts.tokens(),
        losses=facts.losses(),
        cursor=Cursor(block_size=0, windows=0),
        settled=settled,
        data_name=facts.data_name(),
        data_digest=None,
        parent=None,
        size=path.stat().st_size,
        sha256=sha256,
        versions={},
        layout=contents.layout,
        has_moments=bool(foreign.moments(contents, tied=settled.model.tied)),
        written_at=facts.written_at(),
        sources=facts.sources,
    )
    name = layout.inside(path) or _name_in_root(layout, path, sha256)
    return Checkpoint(name=name, manifest=manifest, lies_at=path)


def _name_in_root(layout: Layout, path: Path, sha256: str) -> str:
    """Where a file from outside goes: named by its content, so that bringing it twice is once."""
    folder = layout.checkpoints.name
    if foreign.is_folder(path.parent):
        return f"{folder}/imported/{path.parent.resolve().name}-{sha256[:8]}/{path.name}"
    return f"{folder}/imported/{path.stem}-{sha256[:8]}{path.suffix}"


def bring(layout: Layout, path: Path) -> Checkpoint:
    """A gptjobs checkpoint with its manifest, from another root; not yet committed. Raises Refused where the
    file is not what the manifest says."""
    manifest = checkpoint.read_manifest(path)
    found = Checkpoint(name=_name_in_root(layout, path, manifest.sha256), manifest=manifest, lies_at=path)
    checkpoint.verify(layout, found)
    return found


def commit(layout: Layout, found: Checkpoint) -> Checkpoint:
    """Put the file, if it lies outside, and the manifest in their places; one that is committed stays so."""
    if found.lies_at is None:
        return found
    path = layout.path(found.name)
    try:
        if layout.inside(found.lies_at) is None and not path.exists():
            _copy(layout, found.lies_at, path)
        with suppress(FileExistsError):  # of another client, or of an earlier import
            durable.create(checkpoint.manifest_path(path), durable.to_json(found.manifest.to_dict()))
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise storage.told(error, f"{found.lies_at} cannot be imported to {path.parent}") from error
        raise Refused(
            f"{found.lies_at} cannot be imported: {error.strerror} in {path.parent}",
            hint="its manifest goes beside it: make that folder writable, or copy the file to one that is",
        ) from error
    return checkpoint.read(layout, found.name)


def _copy(layout: Layout, source: Path, target: Path) -> None:
    imported = layout.checkpoints / "imported"
    durable.make_folder(imported)
    durable.sweep(imported)
    durable.make_folder(target.parent)
    if foreign.is_folder(source.parent):
        durable.copy(source.with_name(foreign.CONFIG_FILE), target.with_name(foreign.CONFIG_FILE))
    durable.copy(source, target)
