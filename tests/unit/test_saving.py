"""Checkpoints in the background: what they hold, what waits for them, what becomes of one that cannot be written."""

import os
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptjobs import checkpoint, durable, unpickle
from gptjobs.errors import StorageAway
from gptjobs.layout import Layout
from gptjobs.progress import Alert, CheckpointWritten, Line, Progress, StageBegan
from tests.unit.test_training import (
    CPU,
    Killed,
    assert_same_bits,
    attempted,
    broken,
    contents,
    files,
    planned,
    tensors,
)
from worker.trainer import commit, optim, saving, state
from worker.trainer.saving import Saver
from worker.trainer.state import TrainingState

LIMIT_S = 60.0


def before_naming(monkeypatch: pytest.MonkeyPatch, does: Callable[[Path], None]) -> None:
    """Let something happen before a checkpoint's file, finished, gets its name."""
    place = durable.place

    def placed(beside: Path, path: Path) -> None:
        if path.suffix == ".pt":
            does(path)
        place(beside, path)

    monkeypatch.setattr(durable, "place", placed)


def wait_for(event: threading.Event) -> None:
    assert event.wait(LIMIT_S)


def steps_of(layout: Layout) -> list[int]:
    return [each.manifest.step for each in checkpoint.of_job(layout, "job")]


def update(at: TrainingState, saver: Saver) -> None:
    """A step without data, as the loop makes it."""
    at.optimizer.zero_grad()
    sum(each.square().sum() for each in at.model.parameters()).backward()
    saver.before_update()
    at.optimizer.step()
    at.step += 1


def clones(at: TrainingState) -> dict[str, torch.Tensor]:
    moments = optim.moments(at.model, at.optimizer)
    flat = {f"{name}/{each}": moment for name, own in moments.items() for each, moment in own.items()}
    model = {name: each for name, each in at.model.state_dict().items() if name != "lm_head.weight"}
    return {name: each.clone() for name, each in (model | flat).items()}


def test_a_checkpoint_holds_the_state_of_its_step_though_training_went_on(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, begun = saving._copy, threading.Event()

    def slowly(kept: torch.Tensor, live: torch.Tensor) -> None:
        wait_for(begun)
        time.sleep(0.01)
        copy(kept, live)

    monkeypatch.setattr(saving, "_copy", slowly)
    at = state.load(layout, plan := planned(layout, "job"), None, CPU)
    with Saver(layout, plan, 1, lambda line: None) as saver:
        update(at, saver)
        before = clones(at)
        saver.begin(at)
        begun.set()
        update(at, saver)
        update(at, saver)
    (made,) = checkpoint.of_job(layout, "job")
    assert made.manifest.step == contents(layout, made)["step"] == 1
    assert_same_bits(tensors(layout, made), before)
    assert not torch.equal(before["transformer.wte.weight"], clones(at)["transformer.wte.weight"])


def test_a_checkpoints_line_says_for_how_long_the_loop_waited_for_it(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0

    class Slow:
        """A future that takes its time, by the clock that the saver sees."""

        def __init__(self, real: Any, seconds: float) -> None:
            self._real, self._seconds = real, seconds

        def done(self) -> bool:
            return False

        def result(self, timeout: float | None = None) -> Any:
            nonlocal now
            now += self._seconds
            return self._real.result()

    monkeypatch.setattr(saving.time, "monotonic", lambda: now)
    lines: list[Line] = []
    at = state.load(layout, plan := planned(layout, "job"), None, CPU)
    with Saver(layout, plan, 1, lines.append) as saver:
        update(at, saver)
        saver.begin(at)
        begun = saver._in_flight
        assert begun is not None
        saver._in_flight = replace(begun, copying=Slow(begun.copying, 0.25), writing=Slow(begun.writing, 2.0))
        update(at, saver)
        now += 60  # of training, which does not count
        saver.begin(at)
    assert [each.stall_s for each in lines if isinstance(each, CheckpointWritten)] == [2.25, 0.0]


def test_training_goes_on_while_a_checkpoint_is_written_and_it_counts_once_it_is_durable(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, seen = threading.Event(), []
    before_naming(monkeypatch, lambda path: wait_for(released))

    def heard(line: Line) -> None:
        if isinstance(line, Progress) and line.step == 5:
            seen.extend(path for path in layout.job_checkpoints("job").iterdir() if path.suffix != ".tmp")
            released.set()

    ended = attempted(layout, planned(layout, "job"), heard=heard)
    assert seen == []
    told = [each.step for each in ended.lines if isinstance(each, Progress | CheckpointWritten)]
    assert told in ([0, 1, 2, 3, 4, 5, 3, 6, 6], [0, 1, 2, 3, 4, 5, 6, 3, 6])
    assert steps_of(layout) == [3, 6]


def test_one_that_gets_no_processor_is_written_by_the_loop_that_waits_for_it(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, writers = commit.Hashed.write, set()

    def held(hashed: commit.Hashed, data: Any) -> int:
        writers.add(threading.current_thread().name)
        if hashed._given_up is not None:
            wait_for(hashed._given_up)
        return write(hashed, data)

    monkeypatch.setattr(commit.Hashed, "write", held)
    monkeypatch.setattr(saving, "PATIENCE_S", 0.0)
    at = state.load(layout, plan := planned(layout, "job"), None, CPU)
    with Saver(layout, plan, 1, lambda line: None) as saver:
        update(at, saver)
        before = clones(at)
        saver.begin(at)
        update(at, saver)
        saver.finish(at, saves=False)
    (made,) = checkpoint.of_job(layout, "job")
    assert_same_bits(tensors(layout, made), before)
    assert len(writers) == 2
    assert sorted(path.suffix for path in layout.job_checkpoints("job").iterdir()) == [".json", ".pt"]


def test_a_checkpoint_that_is_due_while_one_is_written_waits_for_it(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, stages = threading.Event(), []
    before_naming(monkeypatch, lambda path: wait_for(released))

    def heard(line: Line) -> None:
        stages.append(line)
        if stages.count(StageBegan(stage="saving")) == 2:
            released.set()

    ended = attempted(layout, planned(layout, "job", checkpoint_interval=1, steps=3, eval_interval=100), heard=heard)
    written = checkpoint.of_job(layout, "job")
    assert ended.finished.outcome == "finished"
    assert [each.manifest.step for each in written] == [1, 2, 3]
    assert [each.manifest.parent for each in written] == [None, written[0].name, written[1].name]


def test_one_that_cannot_be_written_is_an_alert_and_is_tried_again_at_the_next_interval(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before_naming(monkeypatch, lambda path: broken() if "step000006" in path.name else None)
    ended = attempted(layout, planned(layout, "job", steps=12))
    assert ended.finished.outcome == "finished"
    reason = "the checkpoint of step 6 could not be written: Input/output error"
    assert [each for each in ended.lines if isinstance(each, Alert)] == [
        Alert(name="checkpoint_failed", step=6, reason=reason)
    ]
    assert f"alert: {reason}; tried again at the next interval" in capfd.readouterr().err
    first, second, _ = checkpoint.of_job(layout, "job")
    assert steps_of(layout) == [3, 9, 12]
    assert second.manifest.parent == first.name
    checkpoint.verify(layout, first)
    assert len(files(layout.job_checkpoints("job"))) == 6


def test_the_second_in_a_row_that_cannot_be_written_ends_the_attempt(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(layout, "job", steps=30)
    attempted(layout, plan, stop_at=3)
    before = files(layout.job_checkpoints("job"))
    before_naming(monkeypatch, broken)
    lines: list[Line] = []
    with pytest.raises(StorageAway, match="step 9 could not be written: Input/output error"):
        attempted(layout, plan, heard=lines.append)
    assert [each.step for each in lines if isinstance(each, Alert)] == [6]
    assert max(each.step for each in lines if isinstance(each, Progress)) <= 12
    assert files(layout.job_checkpoints("job")) == before


def test_failures_that_are_not_in_a_row_end_nothing(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = ("step000003", "step000009")
    before_naming(monkeypatch, lambda path: broken() if any(each in path.name for each in fails) else None)
    ended = attempted(layout, planned(layout, "job", steps=12))
    assert [each.step for each in ended.lines if isinstance(each, Alert)] == [3, 9]
    assert steps_of(layout) == [6, 12]


def test_the_last_checkpoint_has_no_second_chance(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    before_naming(monkeypatch, broken)
    lines: list[Line] = []
    with pytest.raises(StorageAway, match="step 2 could not be written"):
        attempted(layout, planned(layout, "job"), stop_at=2, heard=lines.append)
    assert [each for each in lines if isinstance(each, Alert)] == []


def test_an_attempt_that_is_asked_to_stop_ends_when_its_last_step_is_committed(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_naming(monkeypatch, lambda path: time.sleep(0.2))  # as long as some steps
    ended = attempted(layout, planned(layout, "job"), stop_at=4)
    assert (ended.finished.outcome, steps_of(layout)) == ("stopped", [3, 4])
    assert [each.step for each in ended.lines if isinstance(each, CheckpointWritten)] == [3, 4]


def test_a_checkpoint_that_is_in_flight_when_training_breaks_down_is_committed_and_told(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_naming(monkeypatch, lambda path: time.sleep(0.2))  # as long as some steps
    lines: list[Line] = []
    with pytest.raises(Killed):
        attempted(layout, planned(layout, "job"), killed_at=4, heard=lines.append)
    assert steps_of(layout) == [3]
    assert [each.step for each in lines if isinstance(each, CheckpointWritten)] == [3]


def test_checkpoints_change_no_bit_of_the_weights(layout: Layout) -> None:
    often, once = (
        attempted(layout, planned(layout, f"every-{interval}", dropout=0.2, checkpoint_interval=interval)).last
        for interval in (1, 100)
    )
    assert_same_bits(tensors(layout, often), tensors(layout, once))


def test_the_file_is_an_ordinary_one_of_torchs(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "_CHUNK_BYTES", 1000)
    made = attempted(layout, planned(layout, "job")).last
    path = layout.path(made.name)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    mapped = torch.load(path, weights_only=True, mmap=True)
    described: dict[str, Any] = unpickle.describe(path)
    assert described["model"].keys() == mapped["model"].keys()
    assert {each.device.type for each in mapped["model"].values()} == {"cpu"}
    assert made.manifest.size == path.stat().st_size


def test_memory_for_snapshots_is_taken_at_the_first_checkpoint_kept_and_told(
    layout: Layout, capfd: pytest.CaptureFixture[str]
) -> None:
    at = state.load(layout, plan := planned(layout, "job"), None, CPU)
    with Saver(layout, plan, 1, lambda line: None) as saver:
        update(at, saver)
        assert saver._kept.size == 0
        places = []
        for _ in range(2):
            saver.begin(at)
            update(at, saver)
            places.append([each.data_ptr() for each in saver._kept._tensors])
        assert saver._kept.size == sum(each.nbytes for each in clones(at).values())
    assert places[0] == places[1]
    assert capfd.readouterr().err.count("GB are kept for snapshots") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities for threads")
def test_writing_gives_way_to_training_but_at_the_end(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def own() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before, noted = own(), list[int]()
    before_naming(monkeypatch, lambda path: noted.append(own()))
    attempted(layout, planned(layout, "job"), stop_at=4)
    assert (noted, own()) == ([19, before], before)
