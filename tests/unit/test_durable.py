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


def test_a_folder_is_made_only_in_one_that_is_there(tmp_path: Path):
    durable.make_folder(tmp_path / "a")
    durable.make_folder(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        durable.make_folder(tmp_path / "bare" / "a")
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_link_that_was_made_though_its_answer_was_lost_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    link = os.link

    def asked_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", asked_twice)
    path = tmp_path / "1.json"
    durable.create(path, b"first")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_sweeping_spares_what_a_living_writer_may_be_at(tmp_path: Path):
    old, new, other = durable.temporary(tmp_path / "a"), durable.temporary(tmp_path / "a"), tmp_path / "a"
    for each in (old, new, other):
        each.write_bytes(b"half")
        os.utime(each, (0, 0))
    os.utime(new)
    durable.sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {new, other}
    durable.sweep(tmp_path, older_than_s=0.0)
    assert set(tmp_path.iterdir()) == {other}
