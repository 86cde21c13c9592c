"""Files that are there whole or not at all."""

import errno
import math
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gptjobs import durable


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """The kernel lets no file of this process grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def no_hard_links(*arguments: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")


def test_write_puts_new_content_over_old(tmp_path: Path):
    path = tmp_path / "record.json"
    durable.write(path, b"old, and longer")
    durable.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_create_never_overwrites(tmp_path: Path):
    path = tmp_path / "1.json"
    durable.create(path, b"first")
    with pytest.raises(FileExistsError):
        durable.create(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_create_does_not_write_through_a_dangling_link(tmp_path: Path):
    path = tmp_path / "1.json"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        durable.create(path, b"second")
    assert list(tmp_path.iterdir()) == [path]


def test_create_works_and_never_overwrites_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "link", no_hard_links)
    path = tmp_path / "1.json"
    durable.create(path, b"first")
    with pytest.raises(FileExistsError):
        durable.create(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("put", [durable.write, durable.create])
def test_a_full_disk_leaves_nothing_new_behind(tmp_path: Path, put: Callable[[Path, bytes], None]):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old")
    target = old if put is durable.write else new
    with room_for(100), pytest.raises(OSError, match="large"):
        put(target, b"x" * 1000)
    assert old.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [old]


def test_a_secret_is_its_owners_alone_from_the_start(tmp_path: Path):
    path = tmp_path / "password"
    durable.write(path, b"secret", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_temporary_names_are_hidden_beside_their_file_and_differ(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    names = {durable.temporary(path) for _ in range(100)}
    assert len(names) == 100
    assert all(each.parent == tmp_path and each.match(".*.tmp") for each in names)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_has_not_is_no_json(value: float):
    with pytest.raises(ValueError, match="JSON"):
        durable.to_json({"loss": value})


def test_json_is_for_people_too():
    assert durable.to_json({"name": "Bücher"}).decode() == '{\n  "name": "Bücher"\n}\n'
