"""How users name things: jobs by id, prefix, name or `@`; checkpoints by path or `JOB@best`."""

import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gptjobs.checkpoint import Losses, manifest_path, read
from gptjobs.errors import NotFound, Refused, UnsafePickle, UsageError
from gptjobs.job import JobSpec
from gptjobs.layout import Layout
from gptjobs.record import write_spec
from gptjobs.reference import Known, find_checkpoint, jobs_on_record, pick
from tests.other_programs import PlainGPT, save_as_common
from tests.unit.conftest import begin, commit

JOBS = (Known("3f9a01", "lm", 1.0), Known("3f9b02", "lm", 3.0), Known("77aa03", None, 2.0), Known("aa0004", "77", 0.5))


@pytest.mark.parametrize(
    ("reference", "id"),
    [
        ("3f9a01", "3f9a01"),
        ("3f9a", "3f9a01"),
        ("lm", "3f9b02"),
        ("@", "3f9b02"),
        ("77a", "77aa03"),
        ("77", "aa0004"),
    ],
)
def test_a_job_is_named_by_id_prefix_name_or_as_the_newest(reference: str, id: str):
    assert pick(reference, JOBS) == id


def test_an_id_means_its_job_even_if_a_newer_one_is_called_so():
    assert pick("3f9a01", [*JOBS, Known("bb0005", "3f9a01", 9.0)]) == "3f9a01"


def test_a_prefix_of_several_jobs_is_a_usage_error_that_names_them():
    with pytest.raises(UsageError, match=r"3f9b02, 3f9a01") as error:
        pick("3f9", JOBS)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(("reference", "hint"), [("lmm", "did you mean lm?"), ("zzz", "gptjobs list"), ("", None)])
def test_an_unknown_job_is_not_found(reference: str, hint: str | None):
    with pytest.raises(NotFound) as error:
        pick(reference, JOBS)
    assert error.value.exit_code == 4
    assert hint in (None, error.value.hint)


def test_there_is_no_newest_of_no_jobs():
    with pytest.raises(NotFound, match="no jobs yet"):
        pick("@", [])


@pytest.fixture
def jobs(layout: Layout) -> dict[int, str]:
    """The job `first` with checkpoints at 100, 200 and 300 that count and 250 that does not; a newer job
    `second` with none. Returns the names by step."""
    first = JobSpec(id="3f9a01", kind="train", name="first", submitted_at=1.0)
    write_spec(layout, first)
    write_spec(layout, replace(first, id="77aa03", name="second", submitted_at=2.0))
    begin(layout, "3f9a01", 1)
    names = {100: commit(layout, "3f9a01", 1, 100, losses=Losses(val_loss=2.5))}
    names[200] = commit(layout, "3f9a01", 1, 200, names[100], losses=Losses(val_loss=2.25))
    names[250] = commit(layout, "3f9a01", 1, 250, names[200], losses=Losses(val_loss=1.0))
    begin(layout, "3f9a01", 2, names[200])
    names[300] = commit(layout, "3f9a01", 2, 300, names[200], losses=Losses(train_loss=1.0))
    return names


def test_jobs_on_record_are_those_with_a_request(layout: Layout, jobs: dict[int, str]):
    (layout.outputs / "torn").mkdir()
    assert {(each.id, each.name) for each in jobs_on_record(layout)} == {("3f9a01", "first"), ("77aa03", "second")}


@pytest.mark.parametrize(
    ("reference", "step"), [("first@last", 300), ("first@best", 200), ("3f@100", 100), ("first@0200", 200)]
)
def test_a_checkpoint_of_a_job(layout: Layout, jobs: dict[int, str], reference: str, step: int):
    found = find_checkpoint(layout, reference)
    assert (found.name, found.manifest.step) == (jobs[step], step)


def test_no_job_before_the_at_means_the_newest(layout: Layout, jobs: dict[int, str]):
    with pytest.raises(NotFound, match="77aa03"):
        find_checkpoint(layout, "@last")
    begin(layout, "77aa03", 1)
    name = commit(layout, "77aa03", 1, 7)
    assert find_checkpoint(layout, "@last").name == name


@pytest.mark.parametrize("reference", ["first@250", "first@150", "first@", "first@newest", "first@²"])
def test_a_checkpoint_that_does_not_count_is_not_found(layout: Layout, jobs: dict[int, str], reference: str):
    with pytest.raises(NotFound, match="has no checkpoint") as error:
        find_checkpoint(layout, reference)
    assert "100, 200, 300" in (error.value.hint or "")


@pytest.mark.parametrize(("which", "meant"), [("bset", "best"), ("lats", "last"), ("lst", "last")])
def test_a_mistyped_checkpoint_of_a_job_is_answered_with_the_right_one(
    layout: Layout, jobs: dict[int, str], which: str, meant: str
):
    with pytest.raises(NotFound) as error:
        find_checkpoint(layout, f"first@{which}")
    assert error.value.hint == f"did you mean 3f9a01@{meant}?"


def test_best_needs_a_validation_loss(layout: Layout, jobs: dict[int, str]):
    begin(layout, "77aa03", 1)
    commit(layout, "77aa03", 1, 7, losses=Losses(train_loss=1.0))
    with pytest.raises(NotFound) as error:
        find_checkpoint(layout, "second@best")
    assert error.value.hint == "77aa03@last"


def test_a_path_is_from_the_root_or_from_where_the_user_stands(layout: Layout, jobs: dict[int, str]):
    assert find_checkpoint(layout, jobs[250]).name == jobs[250]
    assert find_checkpoint(layout, str(layout.path(jobs[100]))).name == jobs[100]
    path = layout.path(jobs[200])
    assert find_checkpoint(layout, path.name, path.parent).name == jobs[200]
    assert find_checkpoint(layout, jobs[200], path.parent).name == jobs[200]
    with pytest.raises(NotFound):
        find_checkpoint(layout, path.name)


def test_where_a_worker_stands_means_nothing(
    layout: Layout, jobs: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    elsewhere = tmp_path / jobs[200]
    elsewhere.parent.mkdir(parents=True)
    elsewhere.touch()
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(layout, jobs[200]).manifest.step == 200


def test_a_checkpoint_outside_the_root_is_to_be_copied_into_it(layout: Layout, jobs: dict[int, str], tmp_path: Path):
    outside = tmp_path / "copy.pt"
    outside.write_bytes(layout.path(jobs[100]).read_bytes())
    manifest_path(outside).write_bytes(manifest_path(layout.path(jobs[100])).read_bytes())
    with pytest.raises(Refused, match="leads out of the storage root"):
        find_checkpoint(layout, str(outside))
    found = find_checkpoint(layout, str(outside), tmp_path)
    assert (found.lies_at, found.manifest) == (outside, read(layout, jobs[100]).manifest)
    assert found.name == f"checkpoints/imported/copy-{found.manifest.sha256[:8]}.pt"
    assert not layout.path(found.name).exists()


@pytest.mark.parametrize("reference", ["checkpoints/3f9a01/none.pt", "none.pt", "none/at/all"])
def test_a_path_to_nothing_is_not_found(layout: Layout, reference: str):
    with pytest.raises(NotFound, match="no checkpoint"):
        find_checkpoint(layout, reference)


def test_a_job_alone_is_no_checkpoint_and_the_hint_says_what_would_be(layout: Layout, jobs: dict[int, str]):
    with pytest.raises(NotFound) as error:
        find_checkpoint(layout, "first")
    assert "first@last" in (error.value.hint or "")


def test_a_folder_that_is_no_hugging_face_one_is_said_to_be_that(layout: Layout):
    (layout.checkpoints / "out").mkdir()
    with pytest.raises(NotFound, match=r"out is a folder without config\.json") as refusal:
        find_checkpoint(layout, "checkpoints/out")
    assert refusal.value.hint == "name a file in it"


def zip_with_pickle(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)


def test_gptjobs_own_file_without_its_manifest_was_never_committed(layout: Layout):
    own = {"model": PlainGPT().state_dict(), "patience": {"waited": 0}, "config": {"origins": {}}}
    torch.save(own, layout.checkpoints / "bare.pt")
    with pytest.raises(NotFound, match="never committed"):
        find_checkpoint(layout, "checkpoints/bare.pt")


def test_another_programs_file_may_have_a_patience_too(layout: Layout):
    save_as_common(layout.checkpoints / "a.pt", PlainGPT().state_dict(), patience=3)
    assert find_checkpoint(layout, "checkpoints/a.pt").manifest.step == 1500


def test_a_bare_file_that_names_code_is_said_to_be_that(layout: Layout):
    path = layout.checkpoints / "bare.pt"
    zip_with_pickle(path, pickle.dumps(os.system, protocol=2))
    with pytest.raises(UnsafePickle, match="system"):
        find_checkpoint(layout, "checkpoints/bare.pt")
