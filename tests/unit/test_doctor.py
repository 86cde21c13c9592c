"""What `gptjobs doctor` finds, check by check, without a server."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from gptjobs import __version__, storage
from gptjobs.data import encoding
from gptjobs.doctor import child, host, root, server, workers
from gptjobs.doctor.check import Check, Verdict
from gptjobs.layout import Layout
from gptjobs.store import Server

FIT = Server(
    version="7.2.4", eviction="noeviction", evicted=0, appendonly=True, syncs="everysec", log_is_written=True,
    snapshot_is_written=True, memory=10**6, memory_limit=0, clients=9, clients_limit=10_000, is_replica=False,
    ping_s=0.001, seconds=0.0,
)  # fmt: skip
LOCAL = "redis://127.0.0.1:6379/0"


def verdicts(made: Iterable[Check]) -> dict[str, Verdict]:
    return {each.name: each.verdict for each in made}


def found(url: str = LOCAL, **changes: object) -> dict[str, Verdict]:
    return verdicts(server.fitness(replace(FIT, **{"seconds": time.time(), **changes}), url))


def test_of_a_server_that_is_fit_nothing_is_said():
    assert found() == {}
    assert found(syncs=None, memory_limit=10**9) == {}


@pytest.mark.parametrize(
    ("changes", "name", "verdict"),
    [
        ({"version": "6.0.16"}, "version", Verdict.PROBLEM),
        ({"eviction": "allkeys-lru"}, "eviction", Verdict.PROBLEM),
        ({"appendonly": False}, "appendonly", Verdict.WARNING),
        ({"syncs": "no"}, "appendfsync", Verdict.WARNING),
        ({"log_is_written": False}, "persistence", Verdict.PROBLEM),
        ({"snapshot_is_written": False}, "persistence", Verdict.PROBLEM),
        ({"memory_limit": 1_050_000}, "memory", Verdict.WARNING),
        ({"memory_limit": 900_000}, "memory", Verdict.PROBLEM),
        ({"clients": 95, "clients_limit": 100}, "clients", Verdict.WARNING),
        ({"is_replica": True}, "replica", Verdict.PROBLEM),
        ({"seconds": 1.0}, "clocks", Verdict.WARNING),
    ],
)
def test_what_makes_a_server_unfit_is_said(changes: dict[str, object], name: str, verdict: Verdict):
    assert found(**changes) == {name: verdict}


@pytest.mark.parametrize(
    ("url", "begins"),
    [
        (LOCAL, "redis-cli config"),
        ("redis://:secret@localhost:7000/0", "redis-cli -p 7000 config"),
        ("rediss://a:secret@redis.example/3", "redis-cli -h redis.example --tls config"),
    ],
)
def test_a_command_to_type_goes_to_that_server_and_says_no_password(url: str, begins: str):
    (made,) = server.fitness(replace(FIT, seconds=time.time(), appendonly=False), url)
    assert (made.hint or "").startswith(begins) and "secret" not in (made.hint or "")


def of_root(folder: Path) -> dict[str, Check]:
    return {each.name: each for each in root.examine(folder)}


def test_a_folder_that_is_no_root_is_said_and_left_as_it_is(tmp_path: Path):
    assert of_root(tmp_path)["root"].verdict is Verdict.WARNING
    assert list(tmp_path.iterdir()) == []


def test_a_client_needs_no_root(tmp_path: Path):
    assert verdicts(root.checks(tmp_path, trains=False)) == {"root": Verdict.SKIPPED}
    assert verdicts(root.checks(tmp_path, trains=True)) == {"root": Verdict.WARNING}


def test_a_root_is_tested_by_writing_told_by_its_marker_and_nothing_is_left_behind(layout: Layout):
    made = of_root(layout.root)
    assert made["root"].verdict is Verdict.OK
    assert "hard links" in made["root"].says and str(storage.identity(layout)) in made["root"].says
    assert [list(each.iterdir()) for each in (layout.checkpoints, layout.outputs, layout.logs)] == [[], [], []]


@pytest.mark.parametrize("which", ["checkpoints", "outputs", "logs", "shared_data"])
def test_a_folder_of_the_root_that_cannot_be_written_to_is_a_problem(layout: Layout, which: str):
    (layout.root / which).rmdir()
    (layout.root / which).touch()
    made = list(root.writing(layout))
    assert verdicts(made) == {"root": Verdict.PROBLEM}
    assert f"nothing can be written to {layout.root / which}: Not a directory" in made[0].says


def test_a_file_system_that_makes_what_is_there_already_is_a_problem(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(root.durable, "create", lambda path, content: path.write_bytes(content))
    (made,) = root.writing(layout)
    assert made.verdict is Verdict.PROBLEM and "a file is made where one of that name is" in made.says


def test_without_hard_links_names_are_taken_by_renaming(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    def refuse(*names: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (made,) = root.writing(layout)
    assert made.verdict is Verdict.OK and "no hard links" in made.says


@pytest.mark.parametrize(
    ("mounted", "expected"),
    [
        ("ext4 rw,relatime", {}),
        ("nfs4 rw,hard,vers=4.2", {"mount": Verdict.OK}),
        ("nfs4 rw,soft,vers=4.2", {"mount": Verdict.WARNING}),
        ("tmpfs rw", {"mount": Verdict.WARNING}),
    ],
)
def test_what_the_root_lies_on_is_told(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mounted: str, expected: dict[str, Verdict]
):
    place = tmp_path / "two words"
    place.mkdir()
    layout.root.rename(place / "root")
    table = tmp_path / "mounts"
    escaped = str(place).replace(" ", "\\040")
    table.write_text(f"none / tmpfs rw 0 0\nnone {escaped} ext3 ro 0 0\nserver:/x {escaped} {mounted} 0 0\n")
    monkeypatch.setattr(root, "MOUNTS", table)
    made = list(root.mount(place / "root"))
    assert verdicts(made) == expected
    assert all(str(place) in each.says for each in made)


def test_a_file_servers_clock_that_is_another_is_a_warning(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    assert list(root.clock(layout.root)) == []
    monkeypatch.setattr(root.time, "time", lambda: 1.0)
    assert verdicts(root.clock(layout.root)) == {"clocks": Verdict.WARNING}
    assert list(layout.outputs.iterdir()) == []


@pytest.mark.parametrize(("free", "verdict"), [(10**10, Verdict.OK), (10**9, Verdict.WARNING)])
def test_room_is_counted_in_checkpoints(layout: Layout, monkeypatch: pytest.MonkeyPatch, free: int, verdict: Verdict):
    usage = root.shutil.disk_usage(layout.root)._replace(free=free)
    monkeypatch.setattr(root.shutil, "disk_usage", lambda path: usage)
    made = next(root.room(layout))
    assert made.verdict is verdict
    assert f"room for {free // 1_500_000_000} checkpoints" in made.says


def test_an_encoding_that_is_another_file_is_a_problem_and_none_a_warning(layout: Layout):
    assert root.encoding_file(layout).verdict is Verdict.WARNING
    encoding.file(layout).parent.mkdir()
    encoding.file(layout).write_bytes(b"something else")
    assert root.encoding_file(layout).verdict is Verdict.PROBLEM


def test_a_root_that_hangs_is_a_problem_after_a_while(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    layout.marker.unlink()
    os.mkfifo(layout.marker)  # who opens it waits
    monkeypatch.setattr(root, "LIMIT_S", 4.0)
    made, told = [], root.checks(layout.root, trains=True)
    while True:
        try:
            made.append(next(told))
        except StopIteration as end:
            assert end.value is False
            break
    assert verdicts(made) == {"root": Verdict.PROBLEM}
    assert "no answer within 4 s" in made[0].says and "findmnt" in (made[0].hint or "")


def test_a_child_that_fails_says_its_last_words():
    with pytest.raises(child.NoAnswer, match="No module named no_such_module") as failed:
        child.answer("no_such_module", limit_s=60)
    assert not failed.value.hung


def without(*packages: str):
    return lambda name: name not in packages


def test_a_client_is_told_from_a_worker_that_lacks_something(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host, "is_installed", without("torch", "psutil", "flower"))
    assert host.packages().verdict is Verdict.OK and "a client" in host.packages().says
    assert host.flower().verdict is Verdict.SKIPPED and "not installed" in host.flower().says
    assert verdicts(host.devices()) == {"devices": Verdict.SKIPPED}
    monkeypatch.setattr(host, "is_installed", without("tiktoken"))
    assert host.packages().verdict is Verdict.PROBLEM and "lack tiktoken" in host.packages().says


@pytest.mark.parametrize(
    ("torchs", "verdict", "hint"),
    [
        ("cuda:0 cuda:1", Verdict.OK, ""),
        ("cuda:0", Verdict.PROBLEM, "unset CUDA_VISIBLE_DEVICES"),
        ("cpu", Verdict.PROBLEM, "gptjobs worker start --device cpu"),
    ],
)
def test_gpus_that_torch_does_not_compute_on_are_a_problem(
    monkeypatch: pytest.MonkeyPatch, torchs: str, verdict: Verdict, hint: str
):
    answers = {"worker.host": "cuda:0 cuda:1", "worker.trainer.device": torchs}
    monkeypatch.setattr(host, "is_installed", without())
    monkeypatch.setattr(host, "answer", lambda module, limit_s: answers[module])
    (made,) = host.devices()
    assert made.verdict is verdict
    assert "cuda:0 cuda:1" in made.says and hint in (made.hint or "")


def test_a_device_that_hangs_or_fails_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host, "is_installed", without())
    monkeypatch.setattr(host, "DEVICE_LIMIT_S", 0.01)
    (made,) = host.devices()
    assert made.verdict is Verdict.PROBLEM and "no answer within 0.01 s" in made.says


def test_a_torch_that_cannot_be_loaded_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (made,) = host.devices()
    assert made.verdict is Verdict.PROBLEM and "libcudart.so.12: cannot open" in made.says
    assert "pip install" in (made.hint or "")


def test_a_device_is_told_only_where_it_computes_right():
    wrong = "import runpy, torch; torch.equal = lambda *each: False; "
    run = "runpy.run_module('worker.trainer.device', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", wrong + run], capture_output=True, text=True)
    assert (done.stdout, "computes wrong" in done.stderr) == ("", True)
    done = subprocess.run([sys.executable, "-m", "worker.trainer.device"], capture_output=True, text=True)
    assert set(done.stdout.split()) & {"cpu", "mps", "cuda:0"}, done.stderr


def test_workers_with_unlike_versions_are_told_with_the_newest_to_install():
    mac = {"torch": "2.9.1", "python": "3.12.4"}
    alike = {"mac@a": mac, "box@b": {"torch": "2.9.1+cu128", "python": "3.12.1"}, "old@c": {}}
    assert list(workers._unlike(alike)) == []
    torch, python = workers._unlike({**alike, "here": {"torch": "2.13.0", "python": "3.11.7"}})
    assert "2.13.0 on here; 2.9.1 on mac@a, box@b" in torch.says and torch.hint == "pip install 'torch==2.13.0' on each"
    assert "3.11 on here; 3.12 on mac@a, box@b" in python.says and python.hint == "Python 3.12 on each"


def test_a_version_that_no_package_has_is_not_told_to_be_typed():
    assert workers._newer("99.0.1") == "99.0.1"
    assert workers._newer("99.0'; rm -rf ~ #") == workers._newer("0.0.9") == __version__
