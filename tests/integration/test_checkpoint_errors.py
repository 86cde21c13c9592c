"""Resumes that would do harm or cannot be, run as real commands on a checkpoint that a real trainer wrote."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gptjobs import durable, planning, record
from gptjobs.checkpoint import manifest_path
from gptjobs.config import Given
from gptjobs.data import tokens
from gptjobs.job import JobSpec
from gptjobs.layout import Layout
from tests.conftest import Commands, english
from tests.integration.test_errors import FIRST, assert_refused

RESUME = ("submit", "resume", "--from")
SIZES = {
    "data": "sources/text.md", "encoding": "bytes", "n_layer": 1, "n_head": 1, "n_embd": 16, "n_positions": 64,
    "block_size": 8, "batch_size": 2, "steps": 4, "warmup_steps": 1, "eval_interval": 2, "eval_tokens": 64,
    "checkpoint_interval": 2,
}  # fmt: skip


@cache
def trained_root(folder: Path) -> Path:
    """A storage root below `folder` in which a trainer made four steps, with checkpoints at 2 and 4; made once."""
    layout = Layout(folder / "trained")
    layout.make()
    source = layout.root / "sources" / "text.md"
    source.parent.mkdir()
    source.write_text(english(9000))
    overrides = {name: Given(value, "a test") for name, value in SIZES.items()}
    spec = JobSpec(id=FIRST, kind="train", name="first", overrides=overrides, submitted_at=1.0)
    plan, _ = planning.plan(layout, spec)
    record.write_spec(layout, spec)
    durable.write(layout.config_file(FIRST), durable.to_json(plan.to_dict()))
    tokens.prepare(layout, source, plan.data_digest, "bytes")
    command = [sys.executable, "-m", "worker.trainer", str(layout.config_file(FIRST)), "--device", "cpu"]
    subprocess.run(command, check=True, capture_output=True)
    return layout.root


def checkpoint_in(layout: Layout, folder: Path) -> Path:
    """Copy that root into `layout`; returns the checkpoint of step 2 of the job that is called first."""
    shutil.copytree(trained_root(folder), layout.root, dirs_exist_ok=True)
    (path,) = layout.job_checkpoints(FIRST).glob("*_step000002_*.pt")
    return path


@pytest.fixture
def checkpoint(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_in(layout, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize(
    ("reference", "why", "hint"),
    [
        ("nothing.pt", "there is no checkpoint nothing.pt", "gptjobs checkpoints list"),
        ("checkpoints/first/none.pt", "there is no checkpoint checkpoints/first/none.pt", "gptjobs checkpoints list"),
        ("first@3", "has no checkpoint '3'", "2, 4"),
        ("first@nest", "has no checkpoint 'nest'", "did you mean"),
        ("frist@2", "no job is called 'frist'", "did you mean first?"),
        ("first", "'first' is no checkpoint", "first@best, first@last"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_not_found(
    gptjobs: Commands, checkpoint: Path, reference: str, why: str, hint: str
) -> None:
    assert_refused(gptjobs, gptjobs(*RESUME, reference), 4, why, hint=hint)


def test_a_resume_of_nothing_is_a_usage_error(gptjobs: Commands) -> None:
    assert_refused(gptjobs, gptjobs("submit", "resume"), 2, "no checkpoint was named", hint="--from")


def flipped(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]


DAMAGE = {
    "a bit of a tensor": lambda content: flipped(content, len(content) // 2, 1),
    "a bit of the pickle": lambda content: flipped(content, 200, 1),
    "a bit of the zip's directory": lambda content: flipped(content, content.index(b"PK\1\2") + 6, 64),
    "half of it": lambda content: content[: len(content) // 2],
    "its last byte": lambda content: content[:-1],
    "everything": lambda content: b"",
}


@pytest.mark.parametrize("damaged", DAMAGE)
def test_a_corrupt_checkpoint_is_refused_at_submit(gptjobs: Commands, checkpoint: Path, damaged: str) -> None:
    checkpoint.write_bytes(DAMAGE[damaged](checkpoint.read_bytes()))
    assert_refused(gptjobs, gptjobs(*RESUME, "first@2"), 3, checkpoint.name, hint="gptjobs checkpoints list")
    assert gptjobs(*RESUME, "first@4", "--learning-rate", "1e-3", "--dry-run").returncode == 0


def test_a_checkpoint_without_a_manifest_was_never_committed(gptjobs: Commands, checkpoint: Path) -> None:
    manifest_path(checkpoint).unlink()
    assert_refused(gptjobs, gptjobs(*RESUME, str(checkpoint)), 4, "no manifest", hint="checkpoints list")


def evil(marker: Path) -> bytes:
    """A pickle that makes a file where it is opened carelessly."""

    class Evil:
        def __reduce__(self) -> Any:
            return eval, (f"open({str(marker)!r}, 'w').close()",)

    return pickle.dumps({"model": Evil()}, protocol=4)


@pytest.mark.parametrize("has_manifest", [False, True])
def test_a_malicious_checkpoint_is_refused_by_name_and_not_run(
    gptjobs: Commands, checkpoint: Path, tmp_path: Path, has_manifest: bool
) -> None:
    marker = tmp_path / "was-run"
    with zipfile.ZipFile(checkpoint, "w") as archive:
        archive.writestr("archive/data.pkl", evil(marker))
    content, manifest = checkpoint.read_bytes(), manifest_path(checkpoint)
    if has_manifest:
        claims = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **claims}))
    else:
        manifest.unlink()
    assert_refused(gptjobs, gptjobs(*RESUME, str(checkpoint)), 3, "builtins.eval", hint="nothing in this one was run")
    assert not marker.exists()
    pickle.loads(evil(marker))
    assert marker.exists()


def test_a_block_larger_than_the_position_table_is_refused_unless_it_may_grow(
    gptjobs: Commands, checkpoint: Path
) -> None:
    done = gptjobs(*RESUME, "first@2", "--block-size", "65")
    assert_refused(gptjobs, done, 3, "block size 65", "64 rows", hint="--grow-positions")
    gptjobs.ok(*RESUME, "first@2", "--block-size", "65", "--grow-positions", "--dry-run")


@pytest.mark.parametrize("path", ["../{}", "checkpoints/../../{}", "{}"])
def test_a_checkpoint_outside_the_root_needs_its_manifest(gptjobs: Commands, checkpoint: Path, path: str) -> None:
    outside = gptjobs.layout.root.parent / checkpoint.name
    checkpoint.rename(outside)
    reference = str(outside) if path == "{}" else path.format(outside.name)
    assert_refused(gptjobs, gptjobs(*RESUME, reference), 4, "no manifest", hint="copy its manifest too")
    manifest_path(checkpoint).rename(manifest_path(outside))
    done = gptjobs(*RESUME, reference, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "its copy for all hosts is checkpoints/imported/" in done.stderr
    assert not (gptjobs.layout.checkpoints / "imported").exists()


def test_other_data_than_the_checkpoint_was_trained_on_is_refused_until_accepted(
    gptjobs: Commands, checkpoint: Path
) -> None:
    other = gptjobs.layout.root / "sources" / "other.md"
    other.write_text(english(9000).upper())
    done = gptjobs(*RESUME, "first@2", "--data", "sources/other.md")
    assert_refused(gptjobs, done, 3, "not what the checkpoint was trained on", hint="--accept-data-change")
    assert "RESETS" in gptjobs(*RESUME, "first@2", "--data", str(other), "--accept-data-change", "--dry-run").stderr
