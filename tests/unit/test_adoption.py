"""Adopting a file: it stays as it is, its manifest is true, and what is damaged is refused by a sentence."""

import errno
import hashlib
import json
import shutil
import struct
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gptjobs import adoption, checkpoint, durable
from gptjobs.checkpoint import Checkpoint, manifest_path
from gptjobs.errors import GptjobsError, Refused
from gptjobs.layout import Layout
from gptjobs.reference import checkpoint_at
from tests.other_programs import HEADS, PlainGPT, save_as_common
from worker.trainer import stored


@pytest.fixture
def bare(layout: Layout) -> Path:
    """A file of another program in the root's checkpoints/."""
    return save_as_common(layout.checkpoints / "bare.pt", PlainGPT().state_dict())


def hugging_face_folder(folder: Path) -> Path:
    """As save_pretrained writes it: safetensors has no tensors that share their numbers."""
    weights = PlainGPT().state_dict()
    del weights["lm_head.weight"]
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"n_head": HEADS, "activation_function": "gelu_new"}))
    return folder


def test_a_file_in_the_root_stays_as_it_is_and_where_it_is(layout: Layout, bare: Path):
    content = bare.read_bytes()
    found = adoption.adopt(layout, bare)
    assert not manifest_path(bare).exists()
    made = adoption.commit(layout, found)
    assert bare.read_bytes() == content
    assert (made.name, made.lies_at, made.manifest) == ("checkpoints/bare.pt", None, found.manifest)
    assert (made.manifest.job, made.manifest.data_digest) == (None, None)
    assert (made.manifest.size, made.manifest.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    checkpoint.verify(layout, made)
    assert checkpoint.brought(layout) == [made]


def test_one_from_outside_is_copied_once_and_is_whole_there(layout: Layout, tmp_path: Path):
    outside = save_as_common(tmp_path / "my model.pt", PlainGPT().state_dict())
    made = adoption.commit(layout, adoption.adopt(layout, outside))
    assert made.name == f"checkpoints/imported/my model-{made.manifest.sha256[:8]}.pt"
    assert layout.path(made.name).read_bytes() == outside.read_bytes()
    before = layout.path(made.name).stat()
    assert adoption.commit(layout, adoption.adopt(layout, outside)) == made
    assert layout.path(made.name).stat().st_ino == before.st_ino
    assert sorted(path.suffix for path in layout.path(made.name).parent.iterdir()) == [".json", ".pt"]


def test_a_folder_from_outside_is_copied_with_its_config(layout: Layout, tmp_path: Path, monkeypatch: Any):
    folder = hugging_face_folder(tmp_path / "gpt2-small")
    made = adoption.commit(layout, adoption.adopt(layout, folder))
    assert made.name == f"checkpoints/imported/gpt2-small-{made.manifest.sha256[:8]}/model.safetensors"
    assert (layout.path(made.name).parent / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert checkpoint_at(layout, layout.path(made.name).parent) == made
    monkeypatch.chdir(folder)
    assert adoption.adopt(layout, Path("model.safetensors")).name == made.name


def test_files_that_differ_by_their_ending_alone_have_manifests_of_their_own(layout: Layout, bare: Path):
    twin = bare.with_suffix(".pth")
    shutil.copyfile(bare, twin)
    save_as_common(bare, PlainGPT().state_dict(), step=7)
    steps = [adoption.commit(layout, adoption.adopt(layout, path)).manifest.step for path in (bare, twin)]
    assert steps == [7, 1500]
    assert [each.manifest.step for each in checkpoint.brought(layout)] == steps


def test_another_programs_json_beside_a_file_is_no_manifest_and_stays(layout: Layout, bare: Path):
    manifest_path(bare).write_text('{"loss": 2.5}')
    with pytest.raises(Refused, match=r"bare\.json cannot be read as the manifest") as refusal:
        checkpoint_at(layout, bare)
    assert "move it away" in (refusal.value.hint or "")
    assert manifest_path(bare).read_text() == '{"loss": 2.5}'


def test_two_clients_that_adopt_one_file_at_once_both_have_it(layout: Layout, bare: Path, tmp_path: Path):
    outside = save_as_common(tmp_path / "outside.pt", PlainGPT().state_dict(), step=9)
    together, made = threading.Barrier(8), list[Checkpoint]()

    def client(path: Path) -> None:
        found = adoption.adopt(layout, path)
        together.wait()
        made.append(adoption.commit(layout, found))

    clients = [threading.Thread(target=client, args=(path,)) for path in (bare, outside) * 4]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    assert sorted({each.name for each in made}) == [each.name for each in checkpoint.brought(layout)]
    assert len(made) == 8
    for each in made:
        checkpoint.verify(layout, each)


def test_a_folder_that_cannot_be_written_is_said_with_what_to_do(layout: Layout, bare: Path, monkeypatch: Any):
    """The kernel's answer is made up: root may write everywhere."""

    def read_only(*arguments: object, **named: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(durable, "create", read_only)
    with pytest.raises(Refused, match=r"cannot be imported: Read-only file system in .*checkpoints") as refusal:
        adoption.commit(layout, adoption.adopt(layout, bare))
    assert "make that folder writable" in (refusal.value.hint or "")


def test_a_gptjobs_checkpoint_from_another_root_is_brought_only_if_it_is_whole(
    layout: Layout, bare: Path, tmp_path: Path
):
    made = adoption.commit(layout, adoption.adopt(layout, bare))
    outside = tmp_path / "copy.pt"
    shutil.copyfile(bare, outside)
    shutil.copyfile(manifest_path(bare), manifest_path(outside))
    found = checkpoint_at(layout, outside)
    assert (found.lies_at, found.manifest) == (outside, made.manifest)
    assert adoption.commit(layout, found).name == f"checkpoints/imported/copy-{made.manifest.sha256[:8]}.pt"
    outside.write_bytes(outside.read_bytes()[:-1])
    with pytest.raises(Refused, match="corrupt"):
        checkpoint_at(layout, outside)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_by_a_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def made_longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def made_text(path: Path) -> None:
    path.write_text("<!DOCTYPE html>\n")


def made_another_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")


def made_old(path: Path) -> None:
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("damage", [cut_in_half, cut_by_a_byte, emptied, made_text, made_another_zip, made_old])
def test_a_damaged_pt_is_refused_by_client_and_trainer(layout: Layout, bare: Path, damage: Callable[[Path], None]):
    manifest = adoption.adopt(layout, bare).manifest
    damage(bare)
    assert_refused_everywhere(layout, bare, manifest)


def assert_refused_everywhere(layout: Layout, path: Path, manifest: checkpoint.Manifest) -> None:
    """With exit code 3, by a sentence about this file."""
    for open_it in (lambda: adoption.adopt(layout, path), lambda: stored.read(path, manifest)):
        with pytest.raises(GptjobsError, match=path.name) as refusal:
            open_it()
        assert refusal.value.exit_code == 3
        assert "\n" not in refusal.value.message


Header = dict[str, Any]


def edited(edit: Callable[[Header], Any]) -> Callable[[Path], None]:
    """Damage to the header of a safetensors file; its length stays true."""

    def damage(path: Path) -> None:
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        header = edit(header) or header
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return damage


def with_length(length: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:]) and None


TABLE = "transformer.wte.weight"
SAFETENSORS_DAMAGE: dict[str, Callable[[Path], None]] = {
    "cut in half": cut_in_half,
    "a byte short": cut_by_a_byte,
    "a byte long": made_longer,
    "empty": emptied,
    "text": made_text,
    "a header longer than the file": with_length(2**40),
    "the longest header": with_length(2**64 - 1),
    "no header": with_length(0),
    "a list for a header": edited(lambda header: [1, 2]),
    "a number for a tensor": edited(lambda header: header.update({TABLE: 7})),
    "no place": edited(lambda header: header[TABLE].pop("data_offsets") and None),
    "half a place": edited(lambda header: header[TABLE].update(data_offsets=[0])),
    "a place beyond the end": edited(lambda header: header[TABLE].update(data_offsets=[10**12, 10**12 + 32768])),
    "a place before the start": edited(lambda header: header[TABLE].update(data_offsets=[-32768, 0])),
    "a place of words": edited(lambda header: header[TABLE].update(data_offsets=["a", "b"])),
    "another's place": edited(lambda header: header[TABLE].update(header["transformer.wpe.weight"], shape=[16, 32])),
    "another shape": edited(lambda header: header[TABLE].update(shape=[512, 32])),
    "a negative shape": edited(lambda header: header[TABLE].update(shape=[-256, -32])),
    "an unknown type": edited(lambda header: header[TABLE].update(dtype="Q4")),
}


@pytest.mark.parametrize("damage", SAFETENSORS_DAMAGE)
def test_a_damaged_safetensors_file_is_refused_by_client_and_trainer(layout: Layout, tmp_path: Path, damage: str):
    path = hugging_face_folder(tmp_path / "model") / "model.safetensors"
    manifest = adoption.adopt(layout, path).manifest
    SAFETENSORS_DAMAGE[damage](path)
    assert_refused_everywhere(layout, path, manifest)


def test_a_header_that_nests_without_end_is_refused(layout: Layout, tmp_path: Path):
    path = hugging_face_folder(tmp_path / "model") / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000)
    with pytest.raises(Refused, match="no whole safetensors file"):
        adoption.adopt(layout, path)


def test_a_config_that_is_no_json_is_refused(layout: Layout, tmp_path: Path):
    folder = hugging_face_folder(tmp_path / "model")
    (folder / "config.json").write_text("{")
    with pytest.raises(Refused, match=r"config\.json is no JSON"):
        adoption.adopt(layout, folder)


def test_weights_that_are_not_finite_are_the_trainers_to_refuse(layout: Layout, bare: Path):
    """The client reads shapes alone."""
    weights = PlainGPT().state_dict()
    weights["transformer.ln_f.weight"][0] = torch.nan
    save_as_common(bare, weights)
    made = adoption.adopt(layout, bare)
    assert replace(made.manifest, sha256="") != made.manifest
