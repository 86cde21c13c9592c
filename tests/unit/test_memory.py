"""When memory runs out: fewer windows at once, the same update; and what later attempts take from that."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gptjobs import checkpoint, progress, record
from gptjobs.checkpoint import Attempt
from gptjobs.cli import screen
from gptjobs.errors import OutOfMemory
from gptjobs.history import History
from gptjobs.job import Cause, JobState, Outcome, against_again
from gptjobs.layout import Layout
from gptjobs.progress import Line, MicroBatch, Progress
from gptjobs.record import PastAttempt
from tests.unit.conftest import NOON
from tests.unit.test_training import CPU, Ended, attempted, contents, planned
from worker.child import Stop
from worker.trainer import memory, optim
from worker.trainer.loop import train
from worker.trainer.model import GPT

LOSS, LOSSES = GPT.loss, GPT.losses
CUDA_SAYS = "CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the docs."


def scarce(monkeypatch: pytest.MonkeyPatch, is_full: Callable[[GPT, Tensor], bool]) -> list[int]:
    """Let memory run out where `is_full` says so; returns the windows of each computation, as they come."""
    seen: list[int] = []

    def with_little_memory(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def computed(model: GPT, inputs: Tensor, *others: Any) -> Tensor:
            seen.append(len(inputs))
            made = compute(model, inputs, *others)
            if is_full(model, inputs):
                raise torch.OutOfMemoryError(CUDA_SAYS)
            return made

        return computed

    monkeypatch.setattr(GPT, "loss", with_little_memory(LOSS))
    monkeypatch.setattr(GPT, "losses", torch.no_grad()(with_little_memory(LOSSES)))
    return seen


def halvings(ended: Ended) -> list[tuple[int, int, int]]:
    return [(each.step, each.before, each.windows) for each in ended.lines if isinstance(each, MicroBatch)]


def assert_same_course(one: Ended, other: Ended) -> None:
    """To float32 rounding."""
    assert [each.step for each in one.progress] == [each.step for each in other.progress]
    for name in ("train_loss", "val_loss", "grad_norm"):
        values = [{each.step: getattr(each, name) for each in ended.progress} for ended in (one, other)]
        known = [{step: value for step, value in each.items() if value is not None} for each in values]
        assert known[0] == pytest.approx(known[1], rel=1e-4), name
    assert one.last.manifest.tokens == other.last.manifest.tokens
    assert one.last.manifest.cursor == other.last.manifest.cursor


@pytest.mark.parametrize(("fit", "expected"), [(3, [(0, 5, 3)]), (2, [(0, 5, 3), (0, 3, 2)])])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
def test_what_does_not_fit_is_computed_in_halves_with_the_same_losses(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, fit: int, expected: list[tuple[int, int, int]], training: bool
) -> None:
    never = attempted(layout, planned(layout, "never", batch_size=5))
    scarce(monkeypatch, lambda model, inputs: torch.is_grad_enabled() is training and len(inputs) > fit)
    ended = attempted(layout, planned(layout, "job", batch_size=5))
    assert halvings(ended) == expected
    assert_same_course(ended, never)


def test_gradients_that_were_half_made_do_not_count(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two micro-batches of step 1 does not fit, the first did."""
    values = {"steps": 3, "eval_interval": 100, "micro_batch": 2}
    never = attempted(layout, planned(layout, "never", **values))
    trained: list[int] = []

    def is_full(model: GPT, inputs: Tensor) -> bool:
        trained.extend([len(inputs)] if torch.is_grad_enabled() else [])
        return len(trained) == 4 and torch.is_grad_enabled()

    scarce(monkeypatch, is_full)
    ended = attempted(layout, planned(layout, "job", **values))
    assert halvings(ended) == [(1, 2, 1)]
    assert trained == [2, 2, 2, 2, *[1] * 8]
    assert_same_course(ended, never)
    moments = [contents(layout, each.last)["optimizer"] for each in (ended, never)]
    for name, moment in moments[0].items():
        torch.testing.assert_close(moment["exp_avg"], moments[1][name]["exp_avg"], rtol=1e-3, atol=1e-7)


def test_nothing_of_what_failed_is_kept_when_it_is_tried_again(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two micro-batches fails: the first one's gradients are there."""
    computed: list[weakref.ref[Tensor]] = []
    at_halving: list[bool] = []

    def loss(model: GPT, inputs: Tensor, *others: Any) -> Tensor:
        made = LOSS(model, inputs, *others)
        if torch.is_grad_enabled() and len(inputs) == 2:
            computed.append(weakref.ref(made))
            if len(computed) == 2:
                monkeypatch.setattr(type(CPU), "empty_cache", lambda self: at_halving.append(is_all_gone(model)))
                raise torch.OutOfMemoryError(CUDA_SAYS)
        return made

    def is_all_gone(model: GPT) -> bool:
        return all(each() is None for each in computed) and all(each.grad is None for each in model.parameters())

    monkeypatch.setattr(GPT, "loss", loss)
    gc.disable()
    try:
        attempted(layout, planned(layout, "job", steps=1, micro_batch=2))
    finally:
        gc.enable()
    assert at_halving == [True]


def test_halving_changes_no_mask_of_dropout(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = attempted(layout, planned(layout, "undisturbed", dropout=0.2))
    scarce(monkeypatch, lambda model, inputs: torch.is_grad_enabled() and len(inputs) > 1)
    halved = attempted(layout, planned(layout, "halved", dropout=0.2))
    assert [each[1:] for each in halvings(halved)] == [(4, 2), (2, 1)]
    assert_same_course(halved, undisturbed)


def test_with_one_window_the_error_stands(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = scarce(monkeypatch, lambda model, inputs: True)
    with pytest.raises(torch.OutOfMemoryError):
        attempted(layout, planned(layout, "job"))
    assert seen == [4, 2, 1]


def test_another_error_is_not_taken_for_too_little_memory(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(model: GPT, inputs: Tensor, *others: Any) -> Tensor:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(GPT, "loss", loss)
    with pytest.raises(RuntimeError, match="shapes"):
        attempted(layout, planned(layout, "job"))


def test_an_optimizer_without_memory_ends_the_attempt(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some weights may have been updated: the step cannot be done again."""

    def step(optimizer: optim.AdamW) -> None:
        raise torch.OutOfMemoryError(CUDA_SAYS)

    seen = scarce(monkeypatch, lambda model, inputs: False)
    monkeypatch.setattr(optim.AdamW, "step", step)
    with pytest.raises(torch.OutOfMemoryError):
        attempted(layout, planned(layout, "job", eval_tokens=8))
    assert seen == [1, 4]


def test_the_cpu_allocators_own_words_are_known() -> None:
    with pytest.raises(OutOfMemory, match=r"out of memory on cpu: .*DefaultCPUAllocator") as caught, memory.told("cpu"):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert caught.value.hint is not None and "--block-size" in caught.value.hint


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(CUDA_SAYS),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.88 GB, other allocations: 1.02 GB)"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("Unable to allocate 8.00 GiB for an array"),
    ],
)
def test_every_way_to_say_so_is_known(error: Exception) -> None:
    with pytest.raises(OutOfMemory) as caught, memory.told("cuda:1"):
        raise error
    assert caught.value.message == f"out of memory on cuda:1: {str(error).splitlines()[0]}"


def test_an_attempt_begins_with_what_fitted_before(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(layout, "job")
    attempt = checkpoint.begin_attempt(layout, "job", 1, None, worker="test", device="cpu", micro_batch=2)
    seen = scarce(monkeypatch, lambda model, inputs: False)
    lines: list[Line] = []
    train(layout, plan, checkpoint.read_attempt(layout, "job", 1), None, CPU, lines.append, Stop())
    assert attempt.micro_batch == 2
    assert set(seen) == {2}
    assert [each for each in lines if isinstance(each, MicroBatch)] == []


def past(
    device: str = "cpu", began_with: int | None = None, came_to: int | None = None, cause: Cause | None = None
) -> PastAttempt:
    attempt = Attempt(
        token=1, start=None, start_step=0, start_token=None, worker="w@host", device=device, began_at=NOON,
        micro_batch=began_with,
    )  # fmt: skip
    ended = Outcome(state=JobState.QUEUED, reason="why", cause=cause) if cause else None
    return PastAttempt(attempt=attempt, ended=ended, progress={}, micro_batch=came_to or began_with)


OOM = Cause.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("attempts", "windows"),
    [
        ([], None),
        ([past(), past(cause=Cause.KILLED)], None),
        ([past(came_to=8)], 8),
        ([past(came_to=8), past(began_with=8, came_to=4), past(began_with=4)], 4),
        ([past(cause=OOM)], 16),
        ([past(cause=OOM), past(began_with=16, cause=OOM)], 8),
        ([past(cause=OOM), past(began_with=16, cause=Cause.HUNG)], 16),
        ([past(came_to=8, cause=OOM)], 4),
        ([past(came_to=1, cause=OOM)], 1),
        ([past("cuda:1", came_to=8), past("mps", cause=OOM)], None),
        ([past("cuda:1", came_to=8), past(), past("cuda:0", began_with=8)], None),
    ],
)
def test_later_attempts_keep_what_fitted_on_their_kind_of_device(
    attempts: list[PastAttempt], windows: int | None
) -> None:
    assert record.micro_batch(attempts, "cpu", 32) == windows


def test_one_gpu_is_like_another() -> None:
    assert record.micro_batch([past("cuda:1", came_to=8)], "cuda:0", 32) == 8


def test_an_attempts_lines_tell_what_it_came_down_to_and_the_events_too(layout: Layout) -> None:
    checkpoint.begin_attempt(layout, "job", 1, None, worker="w@host", device="cpu", micro_batch=8)
    (began,) = record.read_attempts(layout, "job")
    assert began.micro_batch == 8
    first = MicroBatch(step=0, device="cpu", before=8, windows=4, reason="full")
    lines: list[Any] = [first, step_line(), replace(first, before=4, windows=2, step=9)]
    text = "".join(progress.encode(each, seconds=NOON) + "\n" for each in lines)
    layout.attempt_lines("job", 1).write_text(text)
    (came_down,) = record.read_attempts(layout, "job")
    assert came_down.micro_batch == 2
    events = [each for each in History(layout, "job").read().events if each["kind"] == "micro_batch"]
    assert [(each["step"], each["before"], each["windows"]) for each in events] == [(0, 8, 4), (9, 4, 2)]


@pytest.mark.parametrize(
    ("cause", "fruitless", "words"),
    [
        (None, {Cause.HUNG: 2}, None),
        (Cause.STOPPED, {Cause.HUNG: 2}, None),
        (Cause.HUNG, {Cause.HUNG: 1, Cause.ERROR: 3}, "1 attempt without a new checkpoint ended so (hung); after 5 it"),
        (OOM, {OOM: 5}, "5 attempts without a new checkpoint ended so (out of memory)"),
        (Cause.KILLED, {Cause.KILLED: 1}, None),
        (Cause.KILLED, {Cause.KILLED: 2, Cause.LOST_HOST: 1}, "an idle worker takes it after it saw it wait for 20 s"),
    ],
)
def test_what_stands_against_trying_again_is_said(
    cause: Cause | None, fruitless: dict[Cause, int], words: str | None
) -> None:
    told = against_again(cause, fruitless)
    assert told is None if words is None else told is not None and words in told
    assert told is None or ("fails" in told) is (cause is Cause.HUNG)


def test_fewer_windows_than_planned_are_said(layout: Layout) -> None:
    plan = planned(layout, "job")
    assert record.fewer_windows(past(), plan) is record.fewer_windows(None, plan) is None
    told = record.fewer_windows(past(came_to=2), plan)
    assert told == "2 of 4 windows are on the device at once: more ran out of memory"


def test_the_screen_tells_of_a_halving() -> None:
    event = {"kind": "micro_batch", "time": NOON, "step": 0, "before": 8, "windows": 4}
    told = screen._event(event)
    assert told is not None and told.plain.endswith("out of memory: from 8 windows at once to 4")


def step_line() -> Progress:
    return Progress(
        step=1, end_step=2, tokens=3, train_loss=1.0, learning_rate=1e-3, grad_norm=1.0, tokens_per_s=1.0, eta_s=1.0
    )
