"""Describing a `.pt` without torch and without running anything in it."""

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gptjobs.errors import Refused, UnsafePickle
from gptjobs.unpickle import LONGEST_PICKLE, Settings, TensorShape, describe, inert


def torch_file(folder: Path, content: bytes) -> Path:
    """A zip like those of torch.save, with this pickle in it."""
    path = folder / "checkpoint.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return path


class RunsCommand:
    """A pickle of it runs a command where it is loaded."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> Any:
        return os.system, (self._command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_a_command_is_refused_by_name_and_not_run(tmp_path: Path, protocol: int):
    marker = tmp_path / "was-run"
    path = torch_file(tmp_path, pickle.dumps({"step": 7, "model": RunsCommand(f"touch {marker}")}, protocol))
    with pytest.raises(UnsafePickle) as refusal:
        describe(path)
    assert f"{os.system.__module__}.system" in refusal.value.message
    assert str(path) in refusal.value.message
    assert refusal.value.exit_code == 3
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch", "hub.load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.nn.modules.linear", "Linear"),
        ("collections", "namedtuple"),
        ("gptjobs.unpickle", "TensorShape"),
    ],
)
def test_only_what_checkpoints_are_made_of_may_be_named(tmp_path: Path, module: str, name: str):
    with pytest.raises(UnsafePickle, match=f"{module}.{name}"):
        describe(torch_file(tmp_path, f"c{module}\n{name}\n.".encode()))


@pytest.mark.parametrize(
    "name",
    [b"__main__\nGPTConfig", b"pathlib\nPosixPath", b"numpy\ndtype", b"numpy\nndarray", b"collections\nOrderedDict",
     b"numpy._core.multiarray\nscalar", b"torch\nSize", b"torch\nfloat32", b"_codecs\nencode"],
)  # fmt: skip
@pytest.mark.parametrize("attribute", [b"__init__", b"__new__", b"__setstate__", b"__defaults__", b"__code__"])
@pytest.mark.parametrize("value", [b"c__main__\nEvilConfig\n", b")", b"N"])
def test_a_pickle_cannot_change_how_the_files_after_it_are_described(
    tmp_path: Path, name: bytes, attribute: bytes, value: bytes
):
    """By attributes of what stands for its classes: the state of an object may be (attributes, slots)."""
    import numpy

    settings = argparse.Namespace(out=Path("out"), rate=numpy.float64(0.5), seeds=numpy.arange(2), lr=0.1)
    content = pickle.dumps(OrderedDict(config=settings, state=b"\xff"), protocol=2)
    before = describe(torch_file(tmp_path, content))
    slots = b"}X" + len(attribute).to_bytes(4, "little") + attribute + value + b"s"
    with suppress(Refused):
        describe(torch_file(tmp_path, b"\x80\x02c" + name + b"\n(N" + slots + b"tb."))
    after = describe(torch_file(tmp_path, content))
    assert (vars(after["config"])["out"], vars(after["config"])["rate"]) == ("out", 0.5)
    assert after["state"] == before["state"]


def test_a_name_like_that_of_settings_gives_never_the_thing_itself():
    for name in ("os.GPTConfig", "torch.hub.Config", "mine.Args", "subprocess.Popen.Args", "argparse.Namespace"):
        assert inert(name) is Settings
    for name in ("os.system", "Config.load", "mine.load_config", "mine.Config.", "builtins.getattr", "mine.Configs"):
        assert inert(name) is None


def test_a_pickle_that_torch_would_not_open_is_refused_here_already(tmp_path: Path):
    path = torch_file(tmp_path, pickle.dumps({"step": 1}, protocol=4))
    with pytest.raises(Refused, match="another protocol") as refusal:
        describe(path)
    assert refusal.value.hint == "torch.save without pickle_protocol"


def with_entry(path: Path, ending: str, edit: Callable[[bytes], bytes | None]) -> Path:
    """A copy of the zip in which one entry has other content, or is not there."""
    copy = path.with_name("copy.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            content = edit(old.read(name)) if name.endswith(ending) else old.read(name)
            if content is not None:
                new.writestr(name, content)
    return copy


@pytest.mark.parametrize("edit", [lambda content: None, lambda content: content[:-1], lambda content: content[:-4]])
def test_a_tensor_whose_numbers_are_not_all_there_is_refused(tmp_path: Path, edit: Callable[[bytes], bytes | None]):
    import torch

    path = tmp_path / "a.pt"
    torch.save({"a.weight": torch.ones(4, 4), "b.weight": torch.ones(3)}, path)
    assert describe(with_entry(path, "/data/1", lambda content: content)) == describe(path)
    with pytest.raises(Refused, match="damaged"):
        describe(with_entry(path, "/data/1", edit))


@pytest.mark.parametrize(
    ("part", "other"),
    [(b"K\x00K\x01\x86", b"K\x01K\x01\x86"), (b"K\x00M\xe8\x03", b"J\xff\xff\xff\xffM\xe8\x03")],
    ids=["a stride of 1, not 0", "from -1, not 0"],
)
def test_a_view_that_reaches_beyond_its_numbers_is_refused(tmp_path: Path, part: bytes, other: bytes):
    import torch

    path = tmp_path / "a.pt"
    torch.save({"a.weight": torch.ones(1, 4).expand(1000, 4)}, path)
    assert describe(path)["a.weight"] == TensorShape((1000, 4))
    with pytest.raises(Refused, match="reaches beyond"):
        describe(with_entry(path, "data.pkl", lambda content: content.replace(part, other)))


def test_a_file_of_torch_is_described_by_its_shapes(tmp_path: Path):
    import torch

    path = tmp_path / "checkpoint.pt"
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    content = {
        "model": model.state_dict(),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2, 3)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "half": torch.zeros(5, 0, dtype=torch.bfloat16).T,
        "parameter": torch.nn.Parameter(torch.zeros(2, 2)),
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "step": 1500,
        "val_loss": 6.65,
        "config": {"n_layer": 4, "data": "sources/text.md", "parent": None},
    }
    torch.save(content, path)
    described = describe(path)
    assert described["model"] == OrderedDict(
        {
            "0.weight": TensorShape((2, 3)),
            "0.bias": TensorShape((2,)),
            "1.weight": TensorShape((2,)),
            "1.bias": TensorShape((2,)),
            "1.running_mean": TensorShape((2,)),
            "1.running_var": TensorShape((2,)),
            "1.num_batches_tracked": 0,  # a single number is read
        }
    )
    assert described["optimizer"] == {**content["optimizer"], "state": {0: {"exp_avg": TensorShape((2, 3))}}}
    assert (described["half"], described["parameter"]) == (TensorShape((0, 5)), TensorShape((2, 2)))
    assert (described["size"], described["step"], described["val_loss"]) == ((1, 2), 1500, 6.65)
    assert described["config"] == content["config"]


def small_file(folder: Path) -> Path:
    content = OrderedDict(step=1500, losses=[6.5, None], config={"data": "text.md"})
    return torch_file(folder, pickle.dumps(content, protocol=2))


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path):
    path = small_file(tmp_path)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(Refused):
            describe(path)


def test_a_flipped_bit_anywhere_is_harmless_or_refused(tmp_path: Path):
    path = small_file(tmp_path)
    content, whole = path.read_bytes(), describe(path)
    for place in range(len(content)):
        for bit in (1, 8, 128):
            path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            with suppress(Refused):
                assert describe(path) == whole


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"\x80\x02}",
        b"\x80\x09}.",
        b"N}X\x01\x00\x00\x00aNsb.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(t}b.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NI0\nNtR.",
        b"ccollections\nOrderedDict\n(I1\ntR.",
        b"h\x05.",
        b"0.",
        b"X\xff\xff\xff\xff.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
    ids=repr,
)
def test_a_damaged_pickle_is_refused(tmp_path: Path, content: bytes):
    with pytest.raises(Refused):
        describe(torch_file(tmp_path, content))


@pytest.mark.parametrize("names", [(), ("a/data.pkl", "b/data.pkl"), ("data.txt",)])
def test_a_zip_without_one_pickle_is_refused(tmp_path: Path, names: tuple[str, ...]):
    path = tmp_path / "checkpoint.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, pickle.dumps({}))
    with pytest.raises(Refused, match=r"no single data\.pkl"):
        describe(path)


def test_a_pickle_without_a_zip_is_refused_unread(tmp_path: Path):
    path, marker = tmp_path / "old.pt", tmp_path / "was-run"
    path.write_bytes(pickle.dumps(RunsCommand(f"touch {marker}")))
    with pytest.raises(Refused, match="no whole PyTorch checkpoint"):
        describe(path)
    assert not marker.exists()


def test_a_pickle_that_unpacks_to_gigabytes_is_refused_unread(tmp_path: Path):
    path = tmp_path / "bomb.pt"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("bomb/data.pkl", "w", force_zip64=True) as file,
    ):
        for _ in range(LONGEST_PICKLE // (1 << 20) + 1):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(Refused, match="unpack to more than any has"):
        describe(path)
