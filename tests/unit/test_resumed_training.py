"""What a resume trains on and with: the place in the data over other batch and block sizes, the optimizer kept, reset
or rewarmed; and the same job whatever the number of accumulation steps."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gptjobs.checkpoint import Checkpoint
from gptjobs.config import Plan
from gptjobs.contract import contract
from gptjobs.layout import Layout
from tests.unit.test_training import CPU, Killed, assert_same_bits, attempted, contents, first_loss, planned, tensors
from worker.trainer import state
from worker.trainer.batches import Batches
from worker.trainer.model import GPT

LOSS = GPT.loss


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def parent(layout: Layout) -> Checkpoint:
    """Of step 6, after 24 windows of 8 tokens."""
    return attempted(layout, planned(layout, "parent")).last


def gone_on(layout: Layout, job: str, parent: Checkpoint, **values: Any) -> Checkpoint:
    """The last checkpoint of a resume."""
    return attempted(layout, planned(layout, job, parent, **values)).last


def windows_of(layout: Layout, plan: Plan, seen: int, count: int) -> Tensor:
    """Those after the first `seen` in the plan's order."""
    train = plan.settled.train
    file = layout.token_file("text", plan.data_digest, "bytes")
    return Batches(file, train.block_size, train.seed).batch(seen, count)[0]


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The windows of all updates, as they come."""
    seen: list[Tensor] = []

    def loss(model: GPT, inputs: Tensor, *others: Any) -> Tensor:
        seen.extend(inputs if torch.is_grad_enabled() else [])
        return LOSS(model, inputs, *others)

    monkeypatch.setattr(GPT, "loss", loss)
    return seen


def test_resumes_with_other_batch_sizes_train_on_each_window_once_an_epoch(
    layout: Layout, trained_on: list[Tensor]
) -> None:
    (layout.root / "sources" / "text.md").write_text("".join(f"{number:03}." for number in range(100)))
    plan = planned(layout, "first", steps=3, batch_size=4)
    last = attempted(layout, plan).last
    for size, micro_batch in ((1, 0), (7, 3), (2, 1), (9, 2)):
        last = gone_on(layout, f"of-{size}", last, steps=3, batch_size=size, micro_batch=micro_batch)
    windows = 359 // 8
    assert len(trained_on) == 3 * (4 + 1 + 7 + 2 + 9) == last.manifest.cursor.windows > windows
    assert torch.equal(torch.stack(trained_on), windows_of(layout, plan, 0, len(trained_on)))
    assert len({bytes(each.tolist()) for each in trained_on[:windows]}) == windows


def test_back_at_a_former_block_size_the_data_is_begun_anew_and_the_contract_says_so(
    layout: Layout, parent: Checkpoint
) -> None:
    shorter = gone_on(layout, "shorter", parent, steps=3, block_size=4)
    plan = planned(layout, "back", shorter, steps=3, block_size=8)
    ended = attempted(layout, plan)
    assert ended.progress[0].train_loss == first_loss(layout, plan, shorter, seen=0)
    assert ended.last.manifest.cursor.windows == 12
    (reset,) = contract(plan, shorter).resets
    assert reset == "the place in the data: windows of 8 tokens have another order, from its first one"


def test_restart_begins_the_data_anew_once(layout: Layout, parent: Checkpoint, trained_on: list[Tensor]) -> None:
    plan = planned(layout, "restarted", parent, steps=3, data_cursor="restart")
    stopped = attempted(layout, plan, stop_at=8).last
    assert (stopped.manifest.cursor.windows, stopped.manifest.tokens) == (8, 192 + 8 * 8)
    after = gone_on(layout, "after", attempted(layout, plan).last, steps=2)
    assert (after.manifest.cursor.windows, after.manifest.tokens) == (20, 192 + 20 * 8)
    assert torch.equal(torch.stack(trained_on), windows_of(layout, plan, 0, 20))


@pytest.mark.parametrize(("optimizer", "updates"), [("keep", 8.0), ("reset", 2.0), ("rewarm", 2.0)])
def test_moments_are_of_the_updates_since_they_were_reset(
    layout: Layout, parent: Checkpoint, optimizer: str, updates: float
) -> None:
    last = gone_on(layout, "child", parent, steps=2, optimizer=optimizer)
    assert {each["step"].item() for each in contents(layout, last)["optimizer"].values()} == {updates}


def test_a_reset_optimizer_takes_its_first_step_from_the_gradient_alone(layout: Layout, parent: Checkpoint) -> None:
    """AdamW's first update moves what does not decay by the rate itself, whatever the gradient's size."""
    last = gone_on(layout, "child", parent, steps=1, learning_rate=1e-3, optimizer="reset")
    moved = [contents(layout, each)["model"]["transformer.ln_f.weight"] for each in (parent, last)]
    sizes = (moved[1] - moved[0]).abs()
    torch.testing.assert_close(sizes, torch.full_like(sizes, 1e-3), rtol=1e-2, atol=0)


@pytest.mark.parametrize("values", [{"optimizer": "reset"}, {"optimizer": "rewarm"}, {"data_cursor": "restart"}])
@pytest.mark.parametrize("killed_at", [6, 8, 10])
def test_what_was_asked_of_a_resume_is_done_once_however_many_attempts_it_takes(
    layout: Layout, parent: Checkpoint, values: dict[str, Any], killed_at: int
) -> None:
    """Killed before its first checkpoint, at step 9, or after it."""
    never = gone_on(layout, "never", parent, steps=5, **values)
    plan = planned(layout, "killed", parent, steps=5, **values)
    with pytest.raises(Killed):
        attempted(layout, plan, killed_at=killed_at)
    went_on = attempted(layout, plan)
    assert went_on.progress[0].step == (9 if killed_at > 9 else 6)
    assert_same_bits(tensors(layout, never), tensors(layout, went_on.last))
    assert never.manifest.cursor == went_on.last.manifest.cursor


def test_a_rewarm_trains_at_the_rates_that_its_settings_say(layout: Layout, parent: Checkpoint) -> None:
    plan = planned(layout, "child", parent, steps=5, optimizer="rewarm", warmup_steps=4)
    ended = attempted(layout, plan)
    of_the_lines = [each.learning_rate for each in ended.progress]
    assert of_the_lines == pytest.approx([0.0025, 0.0025, 0.005, 0.0075, 0.01, 0.01])
    assert contract(plan, parent).rate_after == of_the_lines[0]


def test_a_switched_schedule_trains_at_the_rates_that_its_settings_say(layout: Layout, parent: Checkpoint) -> None:
    """Constant, then a cosine from here; killed and gone on with, the same one."""
    plan = planned(layout, "child", parent, steps=6, schedule="cosine", warmup_steps=2)
    with pytest.raises(Killed):
        attempted(layout, plan, killed_at=10)
    of_the_lines = {each.step: each.learning_rate for each in attempted(layout, plan).progress}
    assert of_the_lines == {9: pytest.approx(0.00868198, rel=1e-6)} | {
        step: plan.settled.train.learning_rate_at(step - 1) for step in (10, 11, 12)
    }


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_any_number_of_accumulation_steps_gives_the_same_job_to_float32_rounding(
    layout: Layout, micro_batch: int
) -> None:
    """With an epsilon above the rounding of gradients that are nought, such as those of the keys' biases: Adam would
    divide that rounding by its own size."""
    values = {"steps": 12, "batch_size": 8, "schedule": "cosine", "epsilon": 1e-4}
    whole, parts = (
        attempted(layout, planned(layout, f"micro-{size}", micro_batch=size, **values)) for size in (0, micro_batch)
    )
    for name in ("train_loss", "val_loss", "grad_norm"):
        course = [[getattr(each, name) for each in ended.progress] for ended in (whole, parts)]
        assert course[0] == [value if value is None else pytest.approx(value, rel=1e-5) for value in course[1]]
    weights = [contents(layout, ended.last)["model"] for ended in (whole, parts)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-5, atol=1e-5 * tensor.abs().max().item())
    assert whole.last.manifest.cursor == parts.last.manifest.cursor


def test_a_state_that_keeps_all_is_that_of_the_checkpoint(layout: Layout, parent: Checkpoint) -> None:
    kept = state.load(layout, planned(layout, "child", parent, optimizer="keep", data_cursor="keep"), parent, CPU)
    assert (kept.step, kept.windows, len(kept.optimizer.state)) == (6, 24, len(list(kept.model.parameters())))
