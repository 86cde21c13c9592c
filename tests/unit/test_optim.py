"""AdamW of the trainer: what decays, and what a checkpoint's moments bring back."""

import pytest
import torch

from gptjobs.config import ModelConfig, TrainConfig
from gptjobs.diagnosis import Band
from worker.trainer import optim
from worker.trainer.device import open_device
from worker.trainer.model import GPT

CPU = open_device("cpu", "float32")
CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=16, n_positions=8, vocab_size=32)


def model_of(config: ModelConfig = CONFIG) -> GPT:
    torch.manual_seed(3)
    return GPT(config)


def trained(model: GPT, train: TrainConfig, updates: int = 3) -> optim.AdamW:
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
    held = [id(each) for parameters, _ in optimizer.groups for each in parameters]
    assert sorted(held) == sorted(id(each) for each in model.parameters())


def torchs(model: GPT, train: TrainConfig) -> torch.optim.AdamW:
    matrices = [each for each in model.parameters() if each.dim() >= 2]
    vectors = [each for each in model.parameters() if each.dim() < 2]
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(train.beta1, train.beta2), eps=train.epsilon, foreach=False, fused=False)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("grad_clip", [0.0, 0.05])
def test_updates_are_those_of_torchs_own_adamw_at_the_rate_of_each(fused: bool, grad_clip: float) -> None:
    train = TrainConfig(weight_decay=0.5, beta1=0.8, beta2=0.9, grad_clip=grad_clip)
    models = model_of(), model_of()
    own, other = optim.AdamW(models[0], train, fused=fused), torchs(models[1], train)
    draws = torch.Generator().manual_seed(4)
    for rate in (0.1, 0.02, 0.005):
        own.rate = rate
        for group in other.param_groups:
            group["lr"] = rate
        for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=draws) * 0.01
            two.grad = one.grad.clone()
        norm = own.clip(torch.zeros(())).norm
        assert norm > 0.05
        torch.nn.utils.clip_grad_norm_(models[1].parameters(), grad_clip or torch.inf)
        own.step()
        other.step()
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    assert {each["step"].item() for each in own.state.values()} == {3}


def everything(model: GPT, optimizer: optim.AdamW) -> dict[str, torch.Tensor]:
    """Weights and moments; not the counts of updates."""
    kept = {name: each.detach().clone() for name, each in model.named_parameters()}
    for name, moments in optim.moments(model, optimizer).items():
        kept |= {f"{name}/{kind}": moment.clone() for kind, moment in moments.items() if kind != "step"}
    return kept


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("gradient", "loss", "applied"),
    [
        (1.0, 2.0, True), (float("nan"), 2.0, False), (float("inf"), 2.0, False), (1.0, float("nan"), False),
        (1.0, 4.1, False), (1.0, 0.9, False), (100.0, 2.0, False),
    ],
)  # fmt: skip
def test_an_update_that_is_not_finite_or_not_in_the_band_changes_nothing(
    gradient: float, loss: float, applied: bool, fused: bool
) -> None:
    model = model_of()
    optimizer = trained(model, TrainConfig())
    optimizer._fused = fused
    optimizer.band = Band(low=1.0, high=4.0, norm=500.0)
    before = everything(model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.wpe.weight.grad[:] = gradient
    assert optimizer.clip(torch.tensor(loss)).left_out.item() == (not applied)
    optimizer.step()
    after = everything(model, optimizer)
    changed = {name for name, each in after.items() if not torch.equal(each, before[name])}
    assert changed == (set(after) if applied else set())
    counts = {each["step"].item() for each in optimizer.state.values()}
    assert counts == ({4} if applied or not fused else {3})


def test_the_norm_of_each_parameters_gradient_stands_under_its_name() -> None:
    model = model_of()
    optimizer = optim.adamw(model, TrainConfig(), CPU)
    draws = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draws)
    clipped = optimizer.clip(torch.zeros(()))
    by_name = {name: each.grad.norm() for name, each in model.named_parameters()}
    torch.testing.assert_close(clipped.norms, torch.stack([by_name[name] for name in optimizer.names]))
    torch.testing.assert_close(clipped.norm, torch.stack(list(by_name.values())).norm())


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
    assert (optimizer.rate, optimizer.train) == (0.001, new)
    assert [decay for _, decay in optimizer.groups] == [0.02, 0.0]


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
