"""What `gptjobs doctor` finds, check by check."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from gptjobs import doctor
from gptjobs.data import encoding
from gptjobs.doctor import Verdict
from gptjobs.layout import Layout
from gptjobs.store import Server

FIT = Server(version="7.2.4", eviction="noeviction", appendonly=True, ping_s=0.001, seconds=0.0)
LOCAL = "redis://127.0.0.1:6379/0"


def found(url: str = LOCAL, **changes: object) -> dict[str, Verdict]:
    server = replace(FIT, **{"seconds": time.time(), **changes})
    return {each.name: each.verdict for each in doctor.fitness(server, url)}


def test_of_a_server_that_is_fit_nothing_is_said():
    assert found() == {}
    assert found("redis://:secret@10.0.0.7:6379/0") == {}


@pytest.mark.parametrize(
    ("changes", "name", "verdict"),
    [
        ({"version": "6.0.16"}, "version", Verdict.PROBLEM),
        ({"eviction": "allkeys-lru"}, "eviction", Verdict.PROBLEM),
        ({"appendonly": False}, "appendonly", Verdict.WARNING),
        ({"seconds": 1.0}, "clocks", Verdict.WARNING),
    ],
)
def test_what_makes_a_server_unfit_is_said(changes: dict[str, object], name: str, verdict: Verdict):
    assert found(**changes) == {name: verdict}


def test_a_server_that_others_reach_should_have_a_password():
    assert found("redis://10.0.0.7:6379/0") == {"password": Verdict.WARNING}


def checks_of(folder: Path) -> dict[str, doctor.Check]:
    return {each.name: each for each in doctor.root(folder)}


def test_a_folder_that_is_no_root_is_said_and_left_as_it_is(tmp_path: Path):
    assert checks_of(tmp_path)["root"].verdict is Verdict.WARNING
    assert list(tmp_path.iterdir()) == []


def test_a_root_is_tested_by_writing_and_nothing_is_left_behind(layout: Layout):
    made = checks_of(layout.root)
    assert made["root"].verdict is Verdict.OK and "hard links" in made["root"].says
    assert list(layout.checkpoints.iterdir()) == []


def test_a_root_that_cannot_be_written_to_is_a_problem(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.durable, "write", refuse)
    made = checks_of(layout.root)["root"]
    assert made.verdict is Verdict.PROBLEM and "Permission denied" in made.says


@pytest.mark.parametrize(("free", "verdict"), [(10**10, Verdict.OK), (10**9, Verdict.WARNING)])
def test_room_is_counted_in_checkpoints(layout: Layout, monkeypatch: pytest.MonkeyPatch, free: int, verdict: Verdict):
    usage = doctor.shutil.disk_usage(layout.root)._replace(free=free)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    made = doctor.room(layout)
    assert made.verdict is verdict
    assert f"room for {free // 1_500_000_000} checkpoints" in made.says


def test_an_encoding_that_is_another_file_is_a_problem_and_none_a_warning(layout: Layout):
    assert doctor.encoding_file(layout).verdict is Verdict.WARNING
    encoding.file(layout).parent.mkdir()
    encoding.file(layout).write_bytes(b"something else")
    assert doctor.encoding_file(layout).verdict is Verdict.PROBLEM


def without(*packages: str):
    return lambda name: name not in packages


def test_a_client_is_told_from_a_worker_that_lacks_something(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_is_installed", without(*doctor.WORKER_PACKAGES, "flower"))
    assert doctor.packages().verdict is Verdict.OK and "a client" in doctor.packages().says
    assert doctor.flower().verdict is Verdict.OK and "not installed" in doctor.flower().says
    assert list(doctor.devices()) == []
    monkeypatch.setattr(doctor, "_is_installed", without("tiktoken"))
    assert doctor.packages().verdict is Verdict.PROBLEM and "lack tiktoken" in doctor.packages().says


@pytest.mark.parametrize(("torchs", "verdict"), [("cuda", Verdict.OK), ("cpu", Verdict.PROBLEM)])
def test_gpus_that_torch_cannot_use_are_a_problem(monkeypatch: pytest.MonkeyPatch, torchs: str, verdict: Verdict):
    answers = {"worker.host": "cuda:0 cuda:1", "worker.trainer.device": torchs}
    monkeypatch.setattr(doctor, "_is_installed", without())
    monkeypatch.setattr(doctor, "_answer", answers.__getitem__)
    (made,) = doctor.devices()
    assert made.verdict is verdict
    assert "cuda:0 cuda:1" in made.says
