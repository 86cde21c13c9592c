"""Models of other programs, imported: they compute what they computed, and their Adam goes on where it was."""

import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptjobs import adoption, foreign
from gptjobs.checkpoint import Checkpoint
from gptjobs.config import Given, Plan, settle
from gptjobs.errors import Refused
from gptjobs.layout import Layout
from tests import other_programs as other
from tests.other_programs import PlainGPT
from worker.trainer import state, stored
from worker.trainer.device import open_device
from worker.trainer.state import TrainingState

CPU = open_device("cpu", "float32")
NANOGPT = "GPTJOBS_NANOGPT"
"""The variable that names a clone of nanoGPT."""


def imported(layout: Layout, path: Path, **said: Any) -> tuple[Checkpoint, TrainingState]:
    """The file adopted as the client does, and loaded as the trainer does, with the file's own settings."""
    given = {name: Given(value, "a test") for name, value in said.items()}
    made = adoption.commit(layout, adoption.adopt(layout, path, given))
    settled = settle({"data": Given("text.md", "a test")}, parent=made.manifest.settled, parent_step=made.manifest.step)
    plan = Plan(job="job", kind="resume", settled=settled, data_name="text", data_digest="d" * 64, parent=made.name)
    return made, state.load(layout, plan, made, CPU)


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(tokens)


def test_a_model_of_nanogpt_computes_the_same(layout: Layout, tmp_path: Path) -> None:
    """Exact GELU, no biases, a padded table, torch.compile's prefix."""
    model = PlainGPT(bias=False, rows=other.ROWS + 32)
    made, at = imported(layout, other.save_as_nanogpt(tmp_path / "ckpt.pt", model))
    shape = made.manifest.settled.model
    assert (made.manifest.layout, shape.activation, shape.bias, shape.tied) == (foreign.NANOGPT, "gelu", False, True)
    assert shape.vocab_size == other.ROWS + 32
    torch.testing.assert_close(logits(at.model, other.some_tokens()), logits(model, other.some_tokens()))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_state_dict_computes_the_same(
    layout: Layout, tmp_path: Path, prefix: str, tied: bool, approximate: str
) -> None:
    model = PlainGPT(tied=tied, approximate=approximate)
    weights = {prefix + name: each for name, each in model.state_dict().items()}
    activation = "gelu" if approximate == "none" else "gelu_tanh"
    path = other.save_as_common(tmp_path / "a.pt", weights, config={"n_head": other.HEADS, "activation": activation})
    made, at = imported(layout, path)
    assert (made.manifest.layout, made.manifest.settled.model.tied) == (foreign.COMMON, tied)
    torch.testing.assert_close(logits(at.model, other.some_tokens()), logits(model, other.some_tokens()))


def test_what_a_bare_state_dict_does_not_say_is_told(layout: Layout, tmp_path: Path) -> None:
    model = PlainGPT(approximate="tanh")
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    with pytest.raises(Refused, match="how many attention heads") as refusal:
        adoption.adopt(layout, path)
    assert refusal.value.hint == f"gptjobs checkpoints import {path} --n-head N"
    made, at = imported(layout, path, n_head=other.HEADS, activation="gelu_tanh")
    assert (made.manifest.layout, made.manifest.has_moments) == (foreign.BARE, False)
    torch.testing.assert_close(logits(at.model, other.some_tokens()), logits(model, other.some_tokens()))


def test_a_head_with_the_tables_numbers_in_another_place_is_the_table(layout: Layout, tmp_path: Path) -> None:
    weights = PlainGPT().state_dict()
    weights["lm_head.weight"] = weights["lm_head.weight"].clone()
    assert imported(layout, other.save_as_common(tmp_path / "equal.pt", weights))[0].manifest.settled.model.tied
    weights["lm_head.weight"][-1, -1] += 1e-6
    assert not imported(layout, other.save_as_common(tmp_path / "other.pt", weights))[0].manifest.settled.model.tied


def test_a_head_in_the_tables_storage_is_not_the_table(layout: Layout, tmp_path: Path) -> None:
    """As where a program keeps all weights in one buffer."""
    model = PlainGPT(tied=False)
    weights = model.state_dict()
    both = torch.stack([weights["transformer.wte.weight"], weights["lm_head.weight"]])
    weights |= {"transformer.wte.weight": both[0], "lm_head.weight": both[1]}
    made, at = imported(layout, other.save_as_common(tmp_path / "a.pt", weights, config={"n_head": other.HEADS}))
    assert not made.manifest.settled.model.tied
    torch.testing.assert_close(logits(at.model, other.some_tokens()), logits(model, other.some_tokens()))


def assert_same_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, at: TrainingState, turned: tuple[str, ...] = ()
) -> None:
    """An update of the other program gives the weights that one after the import gives; the names that end with
    `turned` are transposed there."""
    other.train(model, optimizer, 1, first=50)
    other.train(at.model, at.optimizer, 1, first=50)
    theirs = dict(model.named_parameters())
    for name, own in at.model.named_parameters():
        expected = theirs[name].T if name.endswith(turned) else theirs[name]
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("groups", other.GROUPINGS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_step_after_import_is_the_step_without(
    layout: Layout, tmp_path: Path, groups: Callable[..., Any], tied: bool, bias: bool
) -> None:
    model = PlainGPT(tied=tied, bias=bias)
    optimizer = other.adamw(groups(model))
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0  # gptjobs decays matrices, which not all of these do
    other.train(model, optimizer, 3)
    path = other.save_as_nanogpt(tmp_path / "ckpt.pt", model, optimizer, weight_decay=0.0)
    made, at = imported(layout, path)
    assert made.manifest.has_moments
    assert_same_step(model, optimizer, at)


def test_rate_betas_epsilon_and_decay_are_the_optimizers_where_no_setting_tells(layout: Layout, tmp_path: Path) -> None:
    model = PlainGPT()
    optimizer = other.adamw(other.nanogpts_groups(model))
    other.train(model, optimizer, 2)
    path = other.save_as_common(tmp_path / "a.pt", model.state_dict(), optimizer, config={"n_head": other.HEADS})
    made, at = imported(layout, path)
    train = made.manifest.settled.train
    assert (train.learning_rate, train.beta1, train.beta2, train.epsilon) == (other.RATE, 0.85, 0.97, other.EPSILON)
    assert (train.weight_decay, made.manifest.settled.origins["beta1"]) == (0.1, "optimizer.param_groups")
    assert_same_step(model, optimizer, at)


@pytest.mark.parametrize("step", [3, 3.0, torch.tensor(3), torch.tensor([3.0])])
def test_the_step_of_older_torches_is_adams(layout: Layout, tmp_path: Path, step: Any) -> None:
    model = PlainGPT()
    optimizer = other.adamw(other.one_group(model))
    other.train(model, optimizer, 3)
    saved = deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        entry["step"] = step
    path = other.save_as_common(tmp_path / "a.pt", model.state_dict(), optimizer_state_dict=saved)
    _, at = imported(layout, path)
    assert {entry["step"].shape for entry in at.optimizer.state.values()} == {torch.Size([])}
    optimizer.param_groups[0]["weight_decay"] = 0.0
    at.optimizer.groups[0] = (at.optimizer.groups[0][0], 0.0)
    assert_same_step(model, optimizer, at)


def test_tensors_that_had_no_gradient_yet_have_no_moments(layout: Layout, tmp_path: Path) -> None:
    model = PlainGPT()
    optimizer = other.adamw(other.nanogpts_groups(model))
    model.transformer["wpe"].weight.requires_grad_(False)
    other.train(model, optimizer, 3)
    model.transformer["wpe"].weight.requires_grad_(True)
    path = other.save_as_common(tmp_path / "a.pt", model.state_dict(), optimizer)
    made, at = imported(layout, path)
    assert made.manifest.has_moments
    assert at.model.wpe.weight not in at.optimizer.state
    assert_same_step(model, optimizer, at)


def adams_state(model: nn.Module) -> dict[str, Any]:
    optimizer = other.adamw(other.one_group(model))
    other.train(model, optimizer, 1)
    return optimizer.state_dict()


def sgd(model: nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    other.train(model, optimizer, 1)
    return optimizer.state_dict()


def of_another_width(model: nn.Module) -> dict[str, Any]:
    saved = adams_state(model)
    saved["state"][3]["exp_avg_sq"] = torch.zeros(5)
    return saved


def with_too_many_tensors(model: nn.Module) -> dict[str, Any]:
    saved = adams_state(model)
    saved["param_groups"][0]["params"].append(99)
    return saved


def without_a_step(model: nn.Module) -> dict[str, Any]:
    saved = adams_state(model)
    del saved["state"][0]["step"]
    return saved


def that_may_be_anybodys(model: nn.Module) -> dict[str, Any]:
    """Moments of two vectors alone: several orders give them to tensors of their shapes."""
    saved = adams_state(model)
    vectors = [number for number, each in saved["state"].items() if each["exp_avg"].shape == (other.WIDTH,)]
    saved["state"] = {number: saved["state"][number] for number in vectors[:1]}
    return saved


def of_junk(model: nn.Module) -> dict[str, Any]:
    return {"state": {0: {"step": "x", "exp_avg": 1, "exp_avg_sq": None}}, "param_groups": [{"params": "all"}, 7]}


def of_lists_for_numbers(model: nn.Module) -> dict[str, Any]:
    saved = adams_state(model)
    saved["param_groups"][0]["params"] = [[number] for number in saved["param_groups"][0]["params"]]
    return saved


def of_settings_for_tensors(model: nn.Module) -> dict[str, Any]:
    saved = adams_state(model)
    saved["state"][0] = dict.fromkeys(("step", "exp_avg", "exp_avg_sq"), Namespace(shape=5))
    saved["state"][1]["exp_avg"] = Namespace(shape=saved["state"][1]["exp_avg"].shape)
    return saved


@pytest.mark.parametrize(
    "saved",
    [of_lists_for_numbers, of_settings_for_tensors, sgd, of_another_width, with_too_many_tensors, without_a_step,
     that_may_be_anybodys, of_junk,
     lambda model: {"state": [1], "param_groups": None}, lambda model: {}],
)  # fmt: skip
def test_moments_that_cannot_be_told_are_none_and_the_weights_stay(
    layout: Layout, tmp_path: Path, saved: Callable[..., Any]
) -> None:
    model = PlainGPT()
    state_dict = saved(model)
    path = other.save_as_common(
        tmp_path / "a.pt", model.state_dict(), optimizer_state_dict=state_dict, config={"n_head": other.HEADS}
    )
    made, at = imported(layout, path)
    assert not made.manifest.has_moments
    assert not at.optimizer.state
    assert made.manifest.settled.train.learning_rate != 0.5, "a rate of SGD is none for Adam"
    torch.testing.assert_close(logits(at.model, other.some_tokens()), logits(model, other.some_tokens()))


def cut(name: str) -> Callable[[dict[str, Tensor]], None]:
    def spoil(weights: dict[str, Tensor]) -> None:
        del weights[name]

    return spoil


def put(name: str, value: Any) -> Callable[[dict[str, Tensor]], None]:
    def spoil(weights: dict[str, Tensor]) -> None:
        weights[name] = value

    return spoil


def cut_block(weights: dict[str, Tensor]) -> None:
    for name in [name for name in weights if name.startswith("transformer.h.0.")]:
        del weights[name]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut("transformer.wte.weight"), "no tensor transformer.wte.weight"),
        (cut("transformer.wpe.weight"), "no tensor transformer.wpe.weight"),
        (cut("transformer.ln_f.bias"), "no tensor transformer.ln_f.bias"),
        (cut("transformer.h.1.ln_2.weight"), "no tensor transformer.h.1.ln_2.weight"),
        (cut("transformer.h.0.mlp.c_proj.bias"), "no tensor transformer.h.0.mlp.c_proj.bias"),
        (cut("transformer.h.0.attn.c_attn.bias"), "no tensor transformer.h.0.attn.c_attn.bias"),
        (cut_block, "no tensor transformer.h.0.attn.c_attn.weight"),
        (put("transformer.h.0.rotary.inv_freq", torch.zeros(4)), "a tensor 'transformer.h.0.rotary.inv_freq'"),
        (put("transformer.h.1.mlp.c_fc.weight", torch.zeros(96, 32)), "c_fc.weight of shape (96, 32), not (128, 32)"),
        (put("transformer.h.1.mlp.c_fc.weight", "text"), "c_fc.weight of shape (), not (128, 32)"),
        (put("transformer.wte.weight", Namespace(shape=(256, 32))), "wte.weight of shape ()"),
        (put("transformer.wpe.weight", Namespace(shape=5)), "wpe.weight of shape ()"),
        (put("transformer.wte.weight", torch.zeros(256)), "wte.weight of shape (256,)"),
        (put("lm_head.weight", torch.zeros(257, 32)), "lm_head.weight of shape (257, 32), not (256, 32)"),
        (put("transformer.h.999999999.ln_1.weight", torch.zeros(32)), "a tensor 'transformer.h.999999999.ln_1.weight'"),
    ],
)  # fmt: skip
def test_what_is_no_whole_gpt2_is_refused_by_what_is_wrong(
    tmp_path: Path, spoil: Callable[[dict[str, Tensor]], None], words: str
) -> None:
    weights = PlainGPT().state_dict()
    spoil(weights)
    path = other.save_as_common(tmp_path / "a.pt", weights)
    with pytest.raises(Refused) as refusal:
        foreign.describe(path)
    assert words in refusal.value.message
    with pytest.raises(Refused) as same:
        foreign.take_apart(stored._load(path), path)
    assert same.value.message == refusal.value.message


@pytest.mark.parametrize("content", [[1, 2], {"net": {"a.weight": torch.zeros(2)}}, {"model": 3}, {}])
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(Refused, match="holds no") as refusal:
        foreign.describe(tmp_path / "a.pt")
    assert "state_dict()" in (refusal.value.hint or "")


@pytest.mark.skipif(NANOGPT not in os.environ, reason=f"{NANOGPT} names no clone of github.com/karpathy/nanoGPT")
@pytest.mark.parametrize("bias", [True, False])
def test_nanogpts_own_model_computes_the_same_and_steps_the_same(layout: Layout, tmp_path: Path, bias: bool) -> None:
    """In a process of its own, that saves a file, its logits and its weights a step later."""
    program = f"""
import sys, torch
sys.path[:0] = [{os.environ[NANOGPT]!r}, {str(Path(__file__).parents[2])!r}]
from model import GPT, GPTConfig
from tests import other_programs as other
from pathlib import Path

torch.manual_seed(1)
model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=288, bias={bias}))
class Logits(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = model
    def forward(self, tokens):
        return model(tokens, tokens)[0]
optimizer = model.configure_optimizers(0.1, {other.RATE}, (0.85, 0.97), "cpu")
for group in optimizer.param_groups:
    group["eps"] = {other.EPSILON}
other.train(Logits(), optimizer, 3)
other.save_as_nanogpt(Path("ckpt.pt"), model, optimizer)
tokens = other.some_tokens()
torch.save(Logits()(tokens).detach(), "logits.pt")
torch.save(model(tokens[:, :-1], tokens[:, 1:].contiguous())[1].item(), "loss.pt")
other.train(Logits(), optimizer, 1, first=50)
torch.save(model.state_dict(), "after.pt")
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    made, at = imported(layout, tmp_path / "ckpt.pt")
    assert made.manifest.has_moments
    torch.testing.assert_close(
        logits(at.model, other.some_tokens()), torch.load(tmp_path / "logits.pt"), rtol=0, atol=1e-4
    )
    tokens = other.some_tokens()
    loss = at.model.loss(tokens[:, :-1], tokens[:, 1:]).item()
    assert loss == pytest.approx(torch.load(tmp_path / "loss.pt"), abs=1e-5)
    at.optimizer.zero_grad()  # the loss has given the table a gradient
    other.train(at.model, at.optimizer, 1, first=50)
    after = torch.load(tmp_path / "after.pt")
    for name, own in at.model.named_parameters():
        torch.testing.assert_close(own.detach(), after[name], rtol=0, atol=1e-6)
