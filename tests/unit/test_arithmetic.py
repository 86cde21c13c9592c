"""What a job's bits depend on: settled before its first step, kept by later attempts, and told where it changes."""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from gptjobs.cli import screen
from gptjobs.history import History
from gptjobs.layout import Layout
from gptjobs.progress import ArithmeticSettled, Progress, StageBegan
from tests.unit.test_training import Ended, attempted, planned
from worker.trainer import arithmetic, optim
from worker.trainer.device import Device
from worker.trainer.model import GPT


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def settled(ended: Ended) -> ArithmeticSettled:
    (line,) = (each for each in ended.lines if isinstance(each, ArithmeticSettled))
    return line


def kept(layout: Layout) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(layout.arithmetic_file("job", "cpu").read_bytes())
    return record


def test_it_is_written_down_before_the_first_step_and_named_in_every_checkpoint(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    clip = optim.AdamW.clip
    monkeypatch.setattr(optim.AdamW, "clip", lambda *words: seen.append(kept(layout)) or clip(*words))
    ended = attempted(layout, planned(layout, "job", steps=1))
    assert seen[0] == kept(layout)
    assert (seen[0]["precision"], seen[0]["compiled"], seen[0]["device"]) == ("float32", False, "cpu")
    assert ended.last.manifest.arithmetic == settled(ended).words
    assert settled(ended).before is None


def test_a_later_attempt_computes_with_the_threads_of_the_first(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    torch.set_num_threads(2)
    plan = planned(layout, "job")
    attempted(layout, plan, stop_at=2)
    torch.set_num_threads(1)
    assert settled(attempted(layout, plan)).before is None
    assert torch.get_num_threads() == 2


def test_a_host_with_fewer_processors_is_an_event_that_says_where_equality_ends(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    plan = planned(layout, "job")
    attempted(layout, plan, stop_at=2)
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    told = settled(attempted(layout, plan))
    assert (told.step, "2 threads" in (told.before or ""), "1 thread" in told.words) == (2, True, True)


def test_a_checkpoint_of_another_device_is_such_an_event_too(layout: Layout) -> None:
    plan = planned(layout, "job")
    stopped = attempted(layout, plan, stop_at=2)
    path = layout.path(stopped.last.name).with_suffix(".json")
    record = json.loads(path.read_bytes())
    record["arithmetic"] = "mps, 8 threads (DEFAULT), float32, not compiled"
    path.write_text(json.dumps(record))
    assert settled(attempted(layout, plan)).before == record["arithmetic"]


def test_the_event_is_shown_where_equality_ends_and_only_there() -> None:
    event = {"kind": "arithmetic", "time": 0.0, "step": 1500, "words": "one", "before": "another"}
    shown = screen._event(event)
    assert shown is not None and "not bit-equal from step 1,500 on: one, before another" in shown.plain
    assert screen._event({**event, "before": None}) is None


def test_it_is_among_the_events_of_a_job(layout: Layout) -> None:
    plan = planned(layout, "job")
    ended = attempted(layout, plan)
    line = settled(ended)
    record = {"schema": 1, "kind": "arithmetic", "time": 1.0, **vars(line)}
    layout.attempt_lines("job", 1).write_text(json.dumps(record) + "\n")
    assert [each["kind"] for each in History(layout, "job").read().events] == ["attempt", "arithmetic"]


def test_a_short_job_is_not_probed(layout: Layout) -> None:
    stages = [each.stage for each in attempted(layout, planned(layout, "job")).lines if isinstance(each, StageBegan)]
    assert "training" in stages
    assert "probing" not in stages


def probed(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[Device, bool], float], **values: Any
) -> tuple[str, bool]:
    """The precision and compilation of a job that is long enough, where an update takes `seconds`."""
    compiled = [False]
    monkeypatch.setattr(arithmetic, "PROBED_FROM_S", 0.0)
    monkeypatch.setattr(arithmetic, "_computes_in_bfloat16", lambda device: True)
    monkeypatch.setattr(arithmetic, "_can_compile", lambda device: True)
    monkeypatch.setattr(arithmetic, "_seconds", lambda gradients, device: seconds(device, compiled[0]))
    monkeypatch.setattr(GPT, "compile_blocks", lambda model, on: compiled.__setitem__(0, on))
    ended = attempted(layout, planned(layout, "job", **values))
    assert ended.finished.outcome == "finished"
    assert compiled == [kept(layout)["compiled"]]
    return kept(layout)["precision"], kept(layout)["compiled"]


@pytest.mark.parametrize(
    ("float32", "bfloat16", "compiled", "expected"),
    [
        (1.0, 1.5, 0.8, ("float32", True)),
        (1.0, 1.5, 1.2, ("float32", False)),
        (1.0, 1.5, 0.99, ("float32", False)),
        (1.0, 0.6, 0.5, ("bfloat16", True)),
        (1.0, 0.6, 0.7, ("bfloat16", False)),
    ],
)
def test_a_probe_takes_what_is_faster_by_more_than_noise(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float, compiled: float,
    expected: tuple[str, bool],
) -> None:  # fmt: skip
    def seconds(device: Device, is_compiled: bool) -> float:
        return compiled if is_compiled else {"float32": float32, "bfloat16": bfloat16}[device.precision]

    assert probed(layout, monkeypatch, seconds) == expected


def test_a_compiler_that_fails_is_no_gain(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(device: Device, is_compiled: bool) -> float:
        if is_compiled:
            raise RuntimeError("no C++ compiler")
        return 1.0

    assert probed(layout, monkeypatch, seconds) == ("float32", False)


def test_what_was_asked_for_is_not_probed(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(device: Device, is_compiled: bool) -> float:
        pytest.fail("nothing is open")

    assert probed(layout, monkeypatch, seconds, precision="float32", compile="off") == ("float32", False)


def test_exact_allows_only_deterministic_algorithms(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(device: Device, is_compiled: bool) -> float:
        return 0.1 if is_compiled or device.precision == "bfloat16" else 1.0

    assert probed(layout, monkeypatch, seconds, exact=True) == ("float32", False)
    assert torch.are_deterministic_algorithms_enabled()


def test_a_real_probe_changes_nothing_of_the_job(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = attempted(layout, planned(layout, "plain"))
    monkeypatch.setattr(arithmetic, "PROBED_FROM_S", 0.0)
    monkeypatch.setattr(arithmetic, "_computes_in_bfloat16", lambda device: True)
    monkeypatch.setattr(arithmetic, "_can_compile", lambda device: False)
    monkeypatch.setattr(arithmetic, "_GAINS", 0.0)
    ended = attempted(layout, planned(layout, "job"))
    assert StageBegan(stage="probing") in ended.lines
    values = [[(each.step, each.train_loss, each.val_loss) for each in some.progress] for some in (plain, ended)]
    assert values[0] == values[1]


def test_the_use_of_a_device_with_a_known_peak_is_told(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "peak", 1e12)
    ended = attempted(layout, planned(layout, "job"))
    flops = 6 * (12 * 16**2 + 256 * 16) + 12 * 16 * 8
    for each in ended.progress:
        assert each.mfu == pytest.approx((each.tokens_per_s or 0.0) * flops / 1e12)
    assert isinstance(ended.progress[0], Progress)
