"""The model against GPT-2 written out in plain tensor operations."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gptjobs.config import PRESETS, ModelConfig
from worker.trainer import model as model_module
from worker.trainer import tables
from worker.trainer.dropout import Dropout
from worker.trainer.model import GPT

CONFIG = ModelConfig(n_layer=2, n_head=4, n_embd=32, n_positions=16, vocab_size=65)


@pytest.fixture
def model() -> GPT:
    """Weights far from their start, biases included, so that every term shows."""
    torch.manual_seed(1)
    made = GPT(CONFIG).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return made


def tokens(rows: int = 3, context: int = 12) -> Tensor:
    return torch.randint(CONFIG.vocab_size, (rows, context), generator=torch.Generator().manual_seed(2))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(x: Tensor, w: dict[str, Tensor], prefix: str) -> Tensor:
    context, size = x.shape[1], CONFIG.n_embd // CONFIG.n_head
    mixed = x @ w[f"{prefix}.c_attn.weight"].T + w[f"{prefix}.c_attn.bias"]
    q, k, v = mixed[..., :32], mixed[..., 32:64], mixed[..., 64:]
    heads = []
    for head in range(CONFIG.n_head):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        later = torch.ones(context, context, dtype=torch.bool).triu(1)
        powers = scores.masked_fill(later, -math.inf).exp()
        heads.append(powers / powers.sum(-1, keepdim=True) @ v[..., part])
    return torch.cat(heads, -1) @ w[f"{prefix}.c_proj.weight"].T + w[f"{prefix}.c_proj.bias"]


def reference(w: dict[str, Tensor], indices: Tensor) -> Tensor:
    x = w["transformer.wte.weight"][indices] + w["transformer.wpe.weight"][: indices.shape[1]]
    for layer in range(CONFIG.n_layer):
        block = f"transformer.h.{layer}"
        normed = layer_norm(x, w[f"{block}.ln_1.weight"], w[f"{block}.ln_1.bias"])
        x = x + attention(normed, w, f"{block}.attn")
        normed = layer_norm(x, w[f"{block}.ln_2.weight"], w[f"{block}.ln_2.bias"])
        wide = gelu(normed @ w[f"{block}.mlp.c_fc.weight"].T + w[f"{block}.mlp.c_fc.bias"])
        x = x + wide @ w[f"{block}.mlp.c_proj.weight"].T + w[f"{block}.mlp.c_proj.bias"]
    x = layer_norm(x, w["transformer.ln_f.weight"], w["transformer.ln_f.bias"])
    return x @ w["transformer.wte.weight"].T


@torch.no_grad()
def test_logits_are_those_of_gpt2_written_out(model: GPT) -> None:
    expected = reference(dict(model.state_dict()), tokens())
    assert expected.std() > 0.5
    torch.testing.assert_close(model(tokens()), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_loss_is_the_mean_negative_log_probability_of_the_targets(model: GPT) -> None:
    inputs, targets = tokens()[:, :-1], tokens()[:, 1:]
    logits = reference(dict(model.state_dict()), inputs)
    probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
    expected = -probabilities.gather(-1, targets.unsqueeze(-1)).log().mean()
    torch.testing.assert_close(model.loss(inputs, targets), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_later_token_changes_no_earlier_logits(model: GPT) -> None:
    changed = tokens()
    changed[:, 7] = (changed[:, 7] + 1) % CONFIG.vocab_size
    before, after = model(tokens()), model(changed)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=1e-6)
    assert ((after - before)[:, 7:].abs().amax(-1) > 1e-3).all()


@torch.no_grad()
def test_a_shorter_context_is_the_beginning_of_a_longer_one(model: GPT) -> None:
    torch.testing.assert_close(model(tokens()[:, :5]), model(tokens())[:, :5], rtol=1e-5, atol=1e-5)


def test_the_head_is_the_token_table(model: GPT) -> None:
    assert model.lm_head.weight is model.wte.weight
    assert model.lm_head.bias is None


def test_the_first_loss_is_that_of_a_guess() -> None:
    torch.manual_seed(1)
    config = ModelConfig(n_layer=2, n_head=2, n_embd=32, n_positions=16, vocab_size=256)
    inputs, targets = torch.randint(256, (2, 64, 16))
    assert GPT(config).loss(inputs, targets).item() == pytest.approx(math.log(256), abs=0.05)


def test_first_weights_are_spread_as_in_gpt2() -> None:
    torch.manual_seed(1)
    model = GPT(ModelConfig(n_layer=8, n_head=2, n_embd=64, n_positions=64, vocab_size=256))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.count_nonzero() == 0, name
        elif "ln_" in name:
            assert (parameter == 1).all(), name
        else:
            expected = 0.02 / math.sqrt(16) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def dropped(part: float, places: range) -> Dropout:
    return Dropout.drawn(part, seed=1, step=0, places=places, sites=7, device=torch.device("cpu"))


@torch.no_grad()
def test_dropout_acts_where_it_is_asked_for_alone(model: GPT) -> None:
    inputs, targets = tokens()[:, :-1], tokens()[:, 1:]
    plain = model.loss(inputs, targets)
    assert not torch.equal(model.loss(inputs, targets, dropped(0.5, range(3))), plain)
    torch.testing.assert_close(model.loss(inputs, targets, dropped(0.0, range(3))), plain, rtol=1e-5, atol=1e-5)


def gradients(model: GPT, parts: int, part: float = 0.0) -> tuple[float, dict[str, Tensor]]:
    """The loss of an update over six windows, that many at once, and its gradients."""
    inputs, targets = tokens(6)[:, :-1], tokens(6)[:, 1:]
    model.zero_grad(set_to_none=True)
    total = 0.0
    for first in range(0, 6, parts):
        rows = slice(first, first + parts)
        dropout = dropped(part, range(first, min(6, first + parts))) if part else None
        loss = model.loss(inputs[rows], targets[rows], dropout, targets.numel())
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total, {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("part", [0.0, 0.3])
def test_the_split_of_an_update_changes_neither_loss_nor_gradients(model: GPT, parts: int, part: float) -> None:
    whole, split = gradients(model, 6, part), gradients(model, parts, part)
    assert split[0] == pytest.approx(whole[0], rel=1e-6)
    torch.testing.assert_close(split[1], whole[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, tied=False), replace(CONFIG, bias=False)])
@pytest.mark.parametrize("part_bytes", [1 << 26, 4 * 65 * 7])
def test_gradients_are_those_that_autograd_makes_of_the_logits(
    config: ModelConfig, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tables._PART_BYTES, "cpu", part_bytes)
    torch.manual_seed(1)
    model = GPT(config)
    loss, made = gradients(model, 6)
    model.zero_grad(set_to_none=True)
    w = {name: each for name, each in model.named_parameters()}
    x = F.embedding(tokens(6)[:, :-1], w["transformer.wte.weight"]) + w["transformer.wpe.weight"][:11]
    for block in model.transformer["h"]:
        x = block(x, None, 0)
    logits = model.transformer["ln_f"](x) @ w.get("lm_head.weight", w["transformer.wte.weight"]).T
    expected = F.cross_entropy(logits.flatten(0, 1), tokens(6)[:, 1:].flatten())
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    wanted = {name: each.grad for name, each in w.items()}
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("part", [0.0, 0.3])
def test_blocks_that_are_computed_again_give_the_same_gradients(model: GPT, part: float) -> None:
    kept = gradients(model, 3, part)
    model.recompute = True
    assert gradients(model, 3, part)[0] == kept[0]
    assert_same_bits(gradients(model, 3, part)[1], kept[1])


def test_attention_written_out_is_torchs_own(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradients(model, 6)
    monkeypatch.setattr(model_module, "_has_right_attention", lambda q: False)
    loss, made = gradients(model, 6)
    assert loss == pytest.approx(expected[0], rel=1e-6)
    torch.testing.assert_close(made, expected[1], rtol=1e-4, atol=1e-6)


def test_rows_that_pad_the_heads_table_change_nothing(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, where tensor cores want them; there are as many as make a multiple."""
    monkeypatch.setitem(tables._PART_BYTES, "cpu", 4 * 65 * 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = gradients(model, 6)
        computed = tables._as_computed
        monkeypatch.setattr(tables, "_as_computed", lambda table: F.pad(computed(table), (0, 0, 0, 63)))
        loss, made = gradients(model, 6)
    assert loss == pytest.approx(expected[0], rel=1e-6)
    torch.testing.assert_close(made, expected[1], rtol=1e-2, atol=1e-3)


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_a_preset_has_as_many_parameters_as_the_published_model(preset: str, count: int) -> None:
    with torch.device("meta"):
        model = GPT(ModelConfig(**PRESETS[preset]))
    assert sum(parameter.numel() for parameter in model.parameters()) == count
