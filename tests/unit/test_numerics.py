"""The trainer's numbers against a plain loop's, and against themselves as they were frozen."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptjobs.config import ModelConfig, TrainConfig
from gptjobs.layout import Layout
from tests import other_programs as other
from tests.unit.test_training import Ended, assert_same_bits, attempted, planned, tensors
from worker.trainer import optim
from worker.trainer.device import open_device
from worker.trainer.model import GPT

SHAPE = ModelConfig(
    n_layer=other.LAYERS, n_head=other.HEADS, n_embd=other.WIDTH, n_positions=other.POSITIONS, vocab_size=other.ROWS,
    activation="gelu",
)  # fmt: skip
STEPS = 300


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Four windows of a text with an order that can be learned: each token follows from the one before."""
    draws = torch.Generator().manual_seed(step)
    windows = torch.randint(other.ROWS, (4, 1), generator=draws)
    for _ in range(other.POSITIONS):
        noise = torch.randint(3, (4, 1), generator=draws)
        windows = torch.cat([windows, (windows[:, -1:] * 5 + 7 + noise) % other.ROWS], 1)
    return windows[:, :-1], windows[:, 1:]


def plain_losses(model: nn.Module) -> list[float]:
    """As a textbook has it: autograd of the logits, clipped, then an AdamW that is not fused."""
    matrices = [each for each in model.parameters() if each.dim() >= 2]
    vectors = [each for each in model.parameters() if each.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, foreach=False, fused=False)
    losses = []
    for step in range(STEPS):
        tokens, targets = batch(step)
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def own_losses(model: GPT) -> list[float]:
    """By the parts of the loop."""
    train = TrainConfig(learning_rate=1e-3)
    optimizer = optim.adamw(model, train, open_device("cpu", "float32"))
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model.loss(*batch(step))
        loss.backward()
        optimizer.clip(loss.detach())
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_300_steps_stay_within_a_thousandth_of_a_plain_loops_loss() -> None:
    plain = other.PlainGPT()
    own = GPT(SHAPE)
    own.load_state_dict(plain.state_dict(), strict=False)  # it has masks of its own
    expected = plain_losses(plain)
    assert expected[-1] < expected[0] - 0.5, "there is something to learn"
    assert own_losses(own) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_of_a_batch_is_that_of_plain_logits(tied: bool) -> None:
    plain = other.PlainGPT(tied=tied, bias=False)
    own = GPT(ModelConfig(**{**vars(SHAPE), "tied": tied, "bias": False}))
    own.load_state_dict(plain.state_dict(), strict=False)  # it has masks of its own
    tokens, targets = batch(0)
    expected = F.cross_entropy(plain(tokens).flatten(0, 1), targets.flatten()).item()
    assert own.loss(tokens, targets).item() == pytest.approx(expected, abs=1e-5)


def losses(ended: Ended) -> list[float]:
    return [each.train_loss for each in ended.progress[1:] if each.train_loss is not None]


@pytest.mark.parametrize(
    ("values", "frozen"),
    [
        ({}, [5.538903, 5.433003, 5.336052, 5.064717, 4.939533, 4.72574]),
        ({"dropout": 0.2, "micro_batch": 3}, [5.533403, 5.46089, 5.353978, 5.094328, 4.99503, 4.782021]),
    ],
)
def test_losses_stay_what_they_were_in_earlier_versions(
    layout: Layout, values: dict[str, Any], frozen: list[float]
) -> None:
    """A change of the trainer that moves them moves every job that is resumed under it."""
    assert losses(attempted(layout, planned(layout, "job", **values))) == pytest.approx(frozen, abs=2e-5)


def never_stopped_and_resumed_alike(layout: Layout, **values: Any) -> Ended:
    """A job that never stopped, whose bits are those of one that did."""
    never = attempted(layout, planned(layout, "never", **values))
    plan = planned(layout, "stopped", **values)
    attempted(layout, plan, stop_at=2)
    assert_same_bits(tensors(layout, never.last), tensors(layout, attempted(layout, plan).last))
    return never


@pytest.mark.parametrize("values", [{}, {"dropout": 0.2, "micro_batch": 3}, {"recompute": True}])
def test_in_bfloat16_too_resumed_is_bit_equal_to_never_stopped(layout: Layout, values: dict[str, Any]) -> None:
    values = {**values, "precision": "bfloat16"}
    never = never_stopped_and_resumed_alike(layout, **values)
    in_float32 = attempted(layout, planned(layout, "float32", **{**values, "precision": "float32"}))
    assert losses(in_float32) != losses(never), "it computed in bfloat16"
    assert losses(in_float32) == pytest.approx(losses(never), rel=0.02)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")  # torch's compiler has many of its own
@pytest.mark.parametrize("values", [{}, {"dropout": 0.2}, {"recompute": True}])
def test_compiled_too_resumed_is_bit_equal_to_never_stopped(layout: Layout, values: dict[str, Any]) -> None:
    compiled = {**values, "compile": "on"}
    never = never_stopped_and_resumed_alike(layout, **compiled)
    assert "not compiled" not in (never.last.manifest.arithmetic or "not compiled")
    eager = attempted(layout, planned(layout, "eager", **values, compile="off"))
    assert losses(never) == pytest.approx(losses(eager), abs=1e-4)
