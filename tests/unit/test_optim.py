"""AdamW of the trainer: what decays, and what a checkpoint's moments bring back."""

import pytest
import torch

from gptjobs.config import ModelConfig, TrainConfig
from worker.trainer import optim
from worker.trainer.device import open_device
from worker.trainer.model import GPT

CPU = open_device("cpu", "float32")
CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=16, n_positions=8, vocab_size=32)


def model_of(config: ModelConfig = CONFIG) -> GPT:
    torch.manual_seed(3)
    return GPT(config)


def trained(model: GPT, train: TrainConfig, updates: int = 3) -> torch.optim.AdamW:
    """The model's optimizer after some updates."""
    optimizer = optim.adamw(model, train, CPU)
    draws = torch.Generator().manual_seed(4)
    for _ in range(updates):
        inputs, targets = torch.randint(model.config.vocab_size, (2, 4, 8), generator=draws)
        optimizer.zero_grad()
        model.loss(inputs, targets).backward()
        optimizer.step()
    return optimizer


def test_matrices_decay_and_nothing_else_does() -> None:
    model = model_of()
    optimizer = optim.adamw(model, TrainConfig(learning_rate=0.1, weight_decay=0.5), CPU)
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1.0 - 0.1 * 0.5 if parameter.dim() == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * kept)


def test_every_tensor_is_updated_once() -> None:
    model = model_of()
    optimizer = optim.adamw(model, TrainConfig(), CPU)
    held = [id(each) for group in optimizer.param_groups for each in group["params"]]
    assert sorted(held) == sorted(id(each) for each in model.parameters())


def test_a_set_learning_rate_holds_for_all_tensors() -> None:
    optimizer = optim.adamw(model_of(), TrainConfig(learning_rate=0.1), CPU)
    optim.set_learning_rate(optimizer, 0.025)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025]


def test_restored_moments_lie_under_their_tensors() -> None:
    first = model_of()
    saved = optim.moments(first, trained(first, TrainConfig()))
    assert saved.keys() == dict(first.named_parameters()).keys()
    second = model_of()
    optimizer = optim.adamw(second, TrainConfig(), CPU)
    optim.restore_moments(second, optimizer, saved)
    for name, parameter in second.named_parameters():
        own = optimizer.state[parameter]
        assert own.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert own["step"].item() == 3
        for each in own:
            assert torch.equal(own[each], saved[name][each]), name
            assert own[each].data_ptr() != saved[name][each].data_ptr(), name
    assert len({own["exp_avg"].numpy().tobytes() for own in saved.values()}) == len(saved)


def test_an_optimizer_with_its_moments_back_updates_as_the_first_would_have() -> None:
    train = TrainConfig(learning_rate=0.01)
    first = model_of()
    optimizer = trained(first, train)
    second = GPT(CONFIG)
    second.load_state_dict(first.state_dict())
    restored = optim.adamw(second, train, CPU)
    optim.restore_moments(second, restored, optim.moments(first, optimizer))
    for model, each in ((first, optimizer), (second, restored)):
        for place, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 0.01 * (place + 1))
        each.step()
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_restoring_brings_back_neither_rate_nor_betas_nor_decay_nor_epsilon() -> None:
    first = model_of()
    old = TrainConfig(learning_rate=0.1, beta1=0.5, beta2=0.6, weight_decay=0.7, epsilon=0.1)
    saved = optim.moments(first, trained(first, old))
    new = TrainConfig(learning_rate=0.001, beta1=0.9, beta2=0.99, weight_decay=0.02, epsilon=1e-6)
    second = model_of()
    optimizer = optim.adamw(second, new, CPU)
    optim.restore_moments(second, optimizer, saved)
    matrices, vectors = optimizer.param_groups
    for group in (matrices, vectors):
        assert (group["lr"], group["betas"], group["eps"]) == (0.001, (0.9, 0.99), 1e-6)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.02, 0.0)


@pytest.mark.parametrize("rows", [9, 13])
def test_rows_that_the_position_table_grew_have_no_moments_yet(rows: int) -> None:
    first = model_of()
    saved = optim.moments(first, trained(first, TrainConfig()))
    grown = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=16, n_positions=rows, vocab_size=32))
    optimizer = optim.adamw(grown, TrainConfig(), CPU)
    optim.restore_moments(grown, optimizer, saved)
    own = optimizer.state[grown.wpe.weight]
    for each in ("exp_avg", "exp_avg_sq"):
        old = saved["transformer.wpe.weight"][each]
        assert old.count_nonzero(dim=1).min() > 0
        assert torch.equal(own[each][:8], old)
        assert own[each].shape == (rows, 16)
        assert own[each][8:].count_nonzero() == 0
    trained_token = optimizer.state[grown.wte.weight]["exp_avg"]
    assert torch.equal(trained_token, saved["transformer.wte.weight"]["exp_avg"])
