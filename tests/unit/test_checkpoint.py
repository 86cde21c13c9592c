"""Checkpoints without torch: what is committed, what is whole, and which ones count."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gptjobs import checkpoint, durable
from gptjobs.checkpoint import (
    Checkpoint,
    Manifest,
    attempts,
    counting,
    latest_token,
    lineage,
    listed,
    manifest_path,
    of_job,
    read,
    start_of_next_attempt,
    sweep_leftovers,
    verify,
)
from gptjobs.errors import NotFound, Refused
from gptjobs.layout import Layout
from tests.unit.conftest import begin, commit, manifest

JOB = "first"


def steps_that_count(layout: Layout, job: str = JOB) -> list[int]:
    return [each.manifest.step for each in counting(layout, job)]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def test_a_manifest_reads_back_as_it_was_written():
    made = manifest(parent="checkpoints/zero/x.pt", status="quarantined", reason="poisoned")
    assert Manifest.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_a_checkpoint_without_a_manifest_does_not_exist(layout: Layout):
    begin(layout, JOB, 1)
    name = commit(layout, JOB, 1, 100)
    manifest_path(layout.path(name)).unlink()
    assert of_job(layout, JOB) == []
    assert steps_that_count(layout) == []
    assert start_of_next_attempt(layout, JOB, None) is None
    with pytest.raises(NotFound, match="never committed") as error:
        read(layout, name)
    assert error.value.exit_code == 4


def test_a_manifest_without_its_file_is_no_checkpoint(layout: Layout):
    begin(layout, JOB, 1)
    name = commit(layout, JOB, 1, 100)
    layout.path(name).unlink()
    assert of_job(layout, JOB) == []
    with pytest.raises(NotFound):
        read(layout, name)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"losses":null}', b"\xff\xfe"], ids=repr)
def test_a_torn_manifest_is_refused(layout: Layout, content: bytes):
    name = commit(layout, JOB, 1, 100)
    manifest_path(layout.path(name)).write_bytes(content)
    with pytest.raises(Refused) as refusal:
        read(layout, name)
    assert refusal.value.exit_code == 3


def test_a_whole_checkpoint_verifies(layout: Layout):
    verify(layout, read(layout, commit(layout, JOB, 1, 100)))


@pytest.mark.parametrize(("damage", "why"), [(flip_a_bit, "SHA-256"), (truncate, "bytes"), (grow, "bytes")])
def test_a_damaged_checkpoint_is_refused_with_an_earlier_one_as_hint(
    layout: Layout, damage: Callable[[Path], None], why: str
):
    name = commit(layout, JOB, 1, 100)
    damage(layout.path(name))
    with pytest.raises(Refused, match=f"corrupt.*{why}") as refusal:
        verify(layout, read(layout, name))
    assert name in refusal.value.message
    assert refusal.value.hint is not None
    assert f"gptjobs checkpoints list {JOB}" in refusal.value.hint


def test_without_an_attempt_nothing_counts(layout: Layout):
    commit(layout, JOB, 1, 100)
    assert steps_that_count(layout) == []


def test_what_the_newest_attempt_wrote_counts_in_the_order_of_steps(layout: Layout):
    begin(layout, JOB, 1)
    for step in (300, 20, 100):
        commit(layout, JOB, 1, step)
    assert steps_that_count(layout) == [20, 100, 300]


def two_attempts(layout: Layout) -> dict[int, str]:
    """The first wrote 100, 200 and 300; the second started from 200 and wrote 250."""
    begin(layout, JOB, 1)
    names = {100: commit(layout, JOB, 1, 100)}
    names[200] = commit(layout, JOB, 1, 200, parent=names[100])
    names[300] = commit(layout, JOB, 1, 300, parent=names[200])
    begin(layout, JOB, 2, start=names[200])
    names[250] = commit(layout, JOB, 2, 250, parent=names[200])
    return names


def test_what_the_newest_attempt_descends_from_counts_and_its_siblings_do_not(layout: Layout):
    two_attempts(layout)
    assert steps_that_count(layout) == [100, 200, 250]
    assert lineage(layout, JOB) == [(1, 200), (2, math.inf)]


def test_what_a_fenced_attempt_writes_later_never_counts(layout: Layout):
    names = two_attempts(layout)
    commit(layout, JOB, 1, 9000, parent=names[300])
    assert steps_that_count(layout) == [100, 200, 250]
    start = start_of_next_attempt(layout, JOB, None)
    assert start is not None
    assert start.name == names[250]
    assert lineage(layout, JOB) == [(1, 200), (2, math.inf)]


def test_a_dead_branch_stays_dead_under_later_attempts(layout: Layout):
    names = two_attempts(layout)
    commit(layout, JOB, 1, 9000, parent=names[300])
    begin(layout, JOB, 10, start=names[250])
    assert steps_that_count(layout) == [100, 200, 250]
    commit(layout, JOB, 10, 270, parent=names[250])
    assert steps_that_count(layout) == [100, 200, 250, 270]
    assert lineage(layout, JOB) == [(1, 200), (2, 250), (10, math.inf)]


def test_a_new_attempt_counts_from_its_beginning_not_from_its_first_checkpoint(layout: Layout):
    names = two_attempts(layout)
    begin(layout, JOB, 3, start=names[100])
    assert steps_that_count(layout) == [100]
    assert lineage(layout, JOB) == [(1, 100), (3, math.inf)]


def test_an_attempt_that_started_over_from_scratch_leaves_all_before_it_behind(layout: Layout):
    two_attempts(layout)
    begin(layout, JOB, 3)
    assert steps_that_count(layout) == []
    assert lineage(layout, JOB) == [(3, math.inf)]


def test_the_parents_checkpoints_are_not_the_jobs_own(layout: Layout):
    begin(layout, "zero", 4)
    parent = commit(layout, "zero", 4, 500)
    begin(layout, JOB, 1, start=parent)
    commit(layout, JOB, 1, 600, parent=parent)
    assert steps_that_count(layout) == [600]
    assert lineage(layout, JOB) == [(1, math.inf)]


def test_a_quarantined_checkpoint_does_not_count_but_those_around_it_do(layout: Layout):
    begin(layout, JOB, 1)
    first = commit(layout, JOB, 1, 100)
    second = commit(layout, JOB, 1, 200, parent=first, status="quarantined", reason="poisoned")
    begin(layout, JOB, 2, start=second)
    commit(layout, JOB, 2, 300, parent=second)
    assert steps_that_count(layout) == [100, 300]


@pytest.mark.parametrize("damage", [flip_a_bit, truncate])
def test_a_corrupt_newest_checkpoint_falls_back_to_the_one_before(layout: Layout, damage: Callable[[Path], None]):
    names = two_attempts(layout)
    damage(layout.path(names[250]))
    start = start_of_next_attempt(layout, JOB, None)
    assert start is not None
    assert start.name == names[200]


def test_a_torn_manifest_costs_no_other_checkpoint(layout: Layout):
    names = two_attempts(layout)
    truncate(manifest_path(layout.path(names[250])))
    manifest_path(layout.path(names[300])).write_bytes(b"")
    start = start_of_next_attempt(layout, JOB, None)
    assert start is not None
    assert start.name == names[200]
    assert steps_that_count(layout) == [100, 200]


def test_an_ancestor_that_a_user_removed_does_not_break_the_lineage(layout: Layout):
    names = two_attempts(layout)
    for path in (layout.path(names[200]), manifest_path(layout.path(names[200]))):
        path.unlink()
    assert 250 in steps_that_count(layout)
    assert lineage(layout, JOB)[-1] == (2, math.inf)


def test_with_nothing_whole_of_its_own_a_job_starts_where_it_was_to_start(layout: Layout):
    parent = commit(layout, "zero", 1, 500)
    assert start_of_next_attempt(layout, JOB, None) is None
    assert start_of_next_attempt(layout, JOB, parent) == read(layout, parent)
    begin(layout, JOB, 1, start=parent)
    truncate(layout.path(commit(layout, JOB, 1, 600, parent=parent)))
    assert start_of_next_attempt(layout, JOB, parent) == read(layout, parent)


def test_a_corrupt_parent_is_refused(layout: Layout):
    parent = commit(layout, "zero", 1, 500)
    flip_a_bit(layout.path(parent))
    with pytest.raises(Refused, match="corrupt"):
        start_of_next_attempt(layout, JOB, parent)


def test_a_token_opens_one_attempt_only(layout: Layout):
    opened = begin(layout, JOB, 1)
    with pytest.raises(FileExistsError):
        begin(layout, JOB, 1)
    assert attempts(layout, JOB) == [opened]


def test_tokens_are_numbers_not_words(layout: Layout):
    assert latest_token(layout, JOB) == 0
    for token in (10, 9, 2):
        begin(layout, JOB, token)
    assert latest_token(layout, JOB) == 10
    assert [each.token for each in attempts(layout, JOB)] == [2, 9, 10]


def test_what_a_file_server_leaves_among_attempts_is_no_attempt(layout: Layout):
    opened = begin(layout, JOB, 1)
    (layout.attempts(JOB) / "._1.json").write_bytes(b"\0\5\x16\7")
    assert attempts(layout, JOB) == [opened]


def test_a_sweep_removes_what_torn_writes_left_and_nothing_else(layout: Layout):
    name = commit(layout, JOB, 1, 100)
    torn = commit(layout, JOB, 1, 200)
    manifest_path(layout.path(torn)).unlink()
    folder = layout.job_checkpoints(JOB)
    (folder / ".checkpoint.pt.01234567.tmp").touch()
    (folder / "notes.txt").touch()
    elsewhere = commit(layout, "zero", 1, 500)
    manifest_path(layout.path(elsewhere)).unlink()

    sweep_leftovers(layout, JOB)
    committed = layout.path(name)
    assert set(folder.iterdir()) == {committed, manifest_path(committed), folder / "notes.txt"}
    assert layout.path(elsewhere).exists()


def test_a_sweep_of_a_job_without_a_folder_is_no_error(layout: Layout):
    sweep_leftovers(layout, JOB)


def test_a_corrupt_checkpoint_is_quarantined_and_told(layout: Layout):
    begin(layout, JOB, 1)
    whole, corrupt = commit(layout, JOB, 1, 100), commit(layout, JOB, 1, 200)
    flip_a_bit(layout.path(corrupt))
    told: list[Checkpoint] = []
    assert start_of_next_attempt(layout, JOB, None, told.append) == read(layout, whole)
    assert told == [read(layout, corrupt)]
    assert (told[0].manifest.status, told[0].manifest.reason) == (
        "quarantined",
        "corrupt: its SHA-256 is not that of its manifest",
    )
    assert steps_that_count(layout) == [100]
    assert [each.manifest.step for each in listed(layout, JOB)] == [100, 200]


def test_a_checkpoint_that_was_quarantined_is_listed_after_another_attempt_began_before_it(layout: Layout):
    begin(layout, JOB, 1)
    whole, corrupt = commit(layout, JOB, 1, 100), commit(layout, JOB, 1, 200)
    truncate(layout.path(corrupt))
    start_of_next_attempt(layout, JOB, None)
    begin(layout, JOB, 2, start=whole)
    assert [each.name for each in listed(layout, JOB)] == [whole, corrupt]


def test_a_manifest_that_is_there_before_its_data_is_waited_for(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    begin(layout, JOB, 1)
    commit(layout, JOB, 1, 100)
    late = layout.path(commit(layout, JOB, 1, 200, written_at=time.time()))
    content = late.read_bytes()
    arriving = iter([content[:-9], b"\0" * len(content), content])
    late.write_bytes(b"")
    monkeypatch.setattr(checkpoint.time, "sleep", lambda pause_s: late.write_bytes(next(arriving)))
    start = start_of_next_attempt(layout, JOB, None)
    assert start is not None
    assert start.manifest.step == 200
    assert next(arriving, None) is None


def test_data_that_never_arrives_is_not_waited_for_long(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    begin(layout, JOB, 1)
    commit(layout, JOB, 1, 100)
    truncate(layout.path(commit(layout, JOB, 1, 200, written_at=time.time())))
    monkeypatch.setattr(checkpoint, "ARRIVES_WITHIN_S", 0.01)
    monkeypatch.setattr(checkpoint.time, "sleep", lambda pause_s, sleep=time.sleep: sleep(pause_s / 100))
    start = start_of_next_attempt(layout, JOB, None)
    assert start is not None
    assert start.manifest.step == 100


def test_a_sweep_spares_what_a_client_may_be_writing(layout: Layout):
    begin(layout, JOB, 1)
    living = durable.temporary(layout.request_file(JOB, "cancel"))
    dead = durable.temporary(layout.attempt_file(JOB, 2))
    for each in (living, dead):
        each.touch()
    sweep_leftovers(layout, JOB)
    assert living.exists()
    assert not dead.exists()
