"""The storage root: told from another one and from a bare mount point; what its errors mean; whether jobs fit."""

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from gptjobs import adoption, checkpoint, planning, record, storage
from gptjobs.config import Plan
from gptjobs.data import tokens
from gptjobs.errors import NoSpace, NotFound, Refused, StorageAway
from gptjobs.job import Cause, JobSpec
from gptjobs.layout import Layout
from tests.unit.conftest import NANO

MEGABYTE = 1_000_000
STEPS_OF_NANO = 400


def plan_of_nano(layout: Layout) -> Plan:
    digest = tokens.digest_of(layout.root / "sources" / "text.md")
    return Plan(job="first", kind="train", settled=NANO, data_name="text", data_digest=digest, parent=None)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many bytes are free."""

    def set_free(size: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(size, 0, size))

    return set_free


def test_a_root_keeps_the_id_that_it_was_made_with(layout: Layout):
    made = storage.identity(layout)
    layout.make()
    assert made is not None
    assert storage.identity(layout) == made


def test_two_roots_have_two_ids(layout: Layout, tmp_path: Path):
    other = Layout(tmp_path / "other")
    other.make()
    assert storage.identity(other) != storage.identity(layout)


def test_a_root_that_is_there_passes(layout: Layout):
    storage.check(storage.identified(layout))
    storage.expect(layout, storage.identity(layout))
    storage.expect(layout, None)


def test_a_bare_mount_point_is_no_root_any_more(layout: Layout):
    known = storage.identified(layout)
    layout.root.rename(layout.root.with_name("elsewhere"))
    layout.root.mkdir()
    with pytest.raises(StorageAway, match="bare, or not mounted"):
        storage.check(known)
    with pytest.raises(Refused, match="is not the storage root of the jobs in Redis") as refusal:
        storage.expect(layout, known.id)
    assert "--root" in (refusal.value.hint or "")


def test_another_root_in_its_place_is_not_it(layout: Layout):
    known = storage.identified(layout)
    layout.root.rename(layout.root.with_name("elsewhere"))
    layout.make()
    with pytest.raises(StorageAway, match="another storage root"):
        storage.check(known)
    with pytest.raises(Refused, match="not that of the jobs in Redis"):
        storage.expect(layout, known.id)


def test_nothing_is_written_to_a_bare_mount_point(tmp_path: Path):
    bare = Layout(tmp_path / "bare")
    bare.root.mkdir()
    text, weights = tmp_path / "text.md", tmp_path / "model.pt"
    text.write_text("text")
    weights.write_bytes(b"weights")
    writers = [
        lambda: record.write_spec(bare, JobSpec(id="first", kind="train", submitted_at=1.0)),
        lambda: record.ask(bare, "first", "cancel"),
        lambda: checkpoint.begin_attempt(bare, "first", 1, None, worker="a@b", device="cpu"),
        lambda: tokens.prepare(bare, text, tokens.digest_of(text), "bytes"),
        lambda: adoption._copy(bare, weights, bare.checkpoints / "imported" / "model.pt"),
    ]
    for write in writers:
        with pytest.raises(FileNotFoundError):
            write()
        assert list(bare.root.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), Cause.NO_SPACE),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Cause.NO_SPACE),
        (OSError(errno.EIO, "Input/output error"), Cause.STORAGE),
        (OSError(errno.ESTALE, "Stale file handle"), Cause.STORAGE),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), Cause.STORAGE),
        (OSError(errno.EROFS, "Read-only file system"), Cause.STORAGE),
        (StorageAway("bare"), Cause.STORAGE),
        (NoSpace("full"), Cause.NO_SPACE),
        (NotFound("gone"), Cause.REFUSED),
        (OSError("libcudart.so: cannot open shared object file"), Cause.ERROR),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), Cause.ERROR),
        (RuntimeError("a bug"), Cause.ERROR),
    ],
)
def test_an_error_tells_its_cause(error: Exception, cause: Cause):
    assert storage.cause_of(error) is cause
    if isinstance(error, OSError):
        assert storage.cause_of(storage.told(error, "it could not be written")) is cause


def test_a_checkpoints_size_is_foreseen(layout: Layout):
    weights = 4 * (12 * 128 * 128 + 13 * 128) + (256 + 1024) * 128
    assert planning.checkpoint_bytes(NANO.model) == 12 * weights


def test_a_job_that_fits_may_start(layout: Layout, free: Any):
    free(12 * MEGABYTE)
    planning.check_room(layout, plan_of_nano(layout), 0)


def test_a_job_whose_checkpoints_do_not_fit_is_refused_with_what_would_fit(layout: Layout, free: Any):
    plan = plan_of_nano(layout)
    often = Plan.from_dict({**plan.to_dict(), "train": {**plan.to_dict()["train"], "checkpoint_interval": 10}})
    free(60 * MEGABYTE)
    with pytest.raises(NoSpace, match="40 checkpoints of 11 MB") as refusal:
        planning.check_room(layout, often, 0)
    assert (refusal.value.exit_code, (refusal.value.hint or "").split()[-1]) == (3, "100")
    fewer = Plan.from_dict({**plan.to_dict(), "train": {**plan.to_dict()["train"], "checkpoint_interval": 100}})
    planning.check_room(layout, fewer, 0)


def test_an_attempt_needs_room_only_for_what_is_still_to_come(layout: Layout, free: Any):
    plan = plan_of_nano(layout)
    often = Plan.from_dict({**plan.to_dict(), "train": {**plan.to_dict()["train"], "checkpoint_interval": 100}})
    free(13 * MEGABYTE)
    with pytest.raises(NoSpace):
        planning.check_room(layout, often, STEPS_OF_NANO - 101)
    planning.check_room(layout, often, STEPS_OF_NANO - 100)
