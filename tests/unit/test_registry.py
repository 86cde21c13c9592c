"""Which checkpoints are to be trusted and which are to be kept."""

from pathlib import Path

import pytest

from gptjobs import checkpoint, planning, record, registry
from gptjobs.checkpoint import Losses
from gptjobs.errors import NotFound, Refused
from gptjobs.job import JobSpec, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.reference import find_checkpoint
from tests.unit.conftest import NOON, begin, commit


@pytest.fixture
def lineage(layout: Layout) -> list[str]:
    """`first` with checkpoints at 100, 200 and 300, and `second`, which goes on from 200."""
    for job in ("first", "second"):
        record.write_spec(layout, JobSpec(id=job, kind="train", submitted_at=NOON))
    begin(layout, "first", 1)
    names = [commit(layout, "first", 1, 100)]
    names.append(commit(layout, "first", 1, 200, names[0]))
    names.append(commit(layout, "first", 1, 300, names[1]))
    begin(layout, "second", 1, names[1])
    return [*names, commit(layout, "second", 1, 250, names[1])]


def steps(layout: Layout, job: str) -> list[int]:
    return [each.manifest.step for each in checkpoint.counting(layout, job)]


def test_a_quarantine_takes_all_from_a_step_on_and_a_release_puts_one_back(layout: Layout, lineage: list[str]) -> None:
    put_away = registry.quarantine(layout, registry.meant(layout, "first@200.."), "spike")
    assert [each.manifest.step for each in put_away] == [200, 300]
    assert steps(layout, "first") == [100]
    assert find_checkpoint(layout, "first@last").manifest.step == 100
    assert registry.quarantine(layout, registry.meant(layout, "first@200..300"), "again") == []
    registry.release(layout, registry.meant(layout, "first@300"))
    assert steps(layout, "first") == [100, 300]


def test_what_descends_from_a_quarantined_checkpoint_is_tainted(layout: Layout, lineage: list[str]) -> None:
    second = checkpoint.read(layout, lineage[3])
    assert registry.taint(layout, second) is None
    registry.quarantine(layout, registry.meant(layout, "first@100"), "spike")
    tainted_by = registry.taint(layout, second)
    assert tainted_by is not None and tainted_by.name == lineage[0]
    assert [each.name for each in registry.ancestry(layout, second)] == [lineage[3], lineage[1], lineage[0]]


def test_a_resume_from_quarantine_is_refused_unless_it_is_allowed(layout: Layout, lineage: list[str]) -> None:
    registry.quarantine(layout, registry.meant(layout, "first@300"), "spike at step 290")
    spec = JobSpec(id="third", kind="resume", parent="first@300", submitted_at=NOON, data_digest="d" * 64)
    with pytest.raises(Refused, match="is quarantined: spike at step 290") as error:
        planning.plan(layout, spec)
    assert "--allow-quarantined" in (error.value.hint or "")
    allowed = JobSpec(**{**vars(spec), "allow_quarantined": True})
    assert planning.plan(layout, allowed)[0].settled.start_step == 300


def test_a_job_whose_checkpoints_are_all_in_quarantine_says_so(layout: Layout, lineage: list[str]) -> None:
    registry.quarantine(layout, registry.meant(layout, "first@0.."), "spike")
    with pytest.raises(NotFound, match="all 3 checkpoints of job first are in quarantine"):
        find_checkpoint(layout, "first@best")
    with pytest.raises(NotFound, match="no checkpoint at the steps 400"):
        registry.meant(layout, "first@400..")


def test_a_damaged_checkpoint_is_not_released(layout: Layout, lineage: list[str]) -> None:
    registry.quarantine(layout, registry.meant(layout, "first@300"), "spike")
    layout.path(lineage[2]).write_bytes(b"x")
    with pytest.raises(Refused, match="is corrupt"):
        registry.release(layout, registry.meant(layout, "first@300"))


def going(layout: Layout, used: set[str], best: int = 0, last: int = 0, every: int = 0) -> list[int]:
    found = registry.superfluous(layout, "long", keep_best=best, keep_last=last, keep_every=every, used=used)
    return [each.manifest.step for each in found]


def test_pruning_keeps_the_best_the_last_the_round_and_what_is_used(layout: Layout) -> None:
    record.write_spec(layout, JobSpec(id="long", kind="train", submitted_at=NOON))
    begin(layout, "long", 1)
    losses = {100: 2.0, 200: 1.0, 300: 1.5, 400: 1.8, 500: 1.9}
    names = {step: commit(layout, "long", 1, step, losses=Losses(val_loss=loss)) for step, loss in losses.items()}
    assert going(layout, set(), best=1, last=1) == [100, 300, 400]
    assert going(layout, set(), best=2, last=0) == [100, 400, 500]
    assert going(layout, set(), best=1, every=200) == [100, 300, 500]
    assert going(layout, {names[100]}, last=2) == [200, 300]
    assert going(layout, set()) == [100, 200, 300, 400], "never the only good one"
    registry.quarantine(layout, registry.meant(layout, "long@500"), "spike")
    assert going(layout, set(), last=1) == [100, 200, 300, 500]


def test_what_a_job_that_goes_on_starts_from_is_in_use(layout: Layout, lineage: list[str]) -> None:
    record.write_spec(layout, JobSpec(id="waits", kind="resume", parent=lineage[0], submitted_at=NOON))
    assert registry.in_use(layout) == {lineage[0], lineage[2], lineage[3]}
    assert registry.in_use(layout, ["first@200", None]) == {*lineage}
    for job in ("first", "second", "waits"):
        record.write_outcome(layout, job, Outcome(state=JobState.FINISHED, reason="finished"), 1)
    assert registry.in_use(layout) == set()


def test_what_is_removed_leaves_its_manifest_for_what_came_after(layout: Layout, lineage: list[str]) -> None:
    registry.quarantine(layout, registry.meant(layout, "first@100"), "spike")
    registry.remove(layout, registry.meant(layout, "first@100..200"))
    assert steps(layout, "first") == [300]
    assert [each.suffix for each in Path(layout.job_checkpoints("first")).iterdir()].count(".pt") == 1
    second = checkpoint.read(layout, lineage[3])
    tainted_by = registry.taint(layout, second)
    assert tainted_by is not None and tainted_by.name == lineage[0]
