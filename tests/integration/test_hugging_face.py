"""Models of Hugging Face's transformers, imported, against its own GPT2LMHeadModel; its weights are random."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptjobs import foreign
from gptjobs.layout import Layout
from tests import other_programs as other
from tests.unit.test_foreign import assert_same_step, imported

TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
"""matrices that Conv1D has the other way round"""


def made(**changes: Any) -> Any:
    """A GPT2LMHeadModel whose every weight is far from its start, biases and norms included."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    shape = {"n_layer": other.LAYERS, "n_head": other.HEADS, "n_embd": other.WIDTH}
    sizes = {"n_positions": other.POSITIONS, "vocab_size": other.ROWS, "bos_token_id": 0, "eos_token_id": 0}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**(shape | sizes | dropout | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def as_safetensors(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    assert (folder / "model.safetensors").is_file()
    return folder


def as_pytorch_bin(model: Any, folder: Path) -> Path:
    folder.mkdir()
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def as_common_of_several_gpus(model: Any, folder: Path) -> Path:
    weights = {f"module.{name}": each for name, each in model.state_dict().items()}
    return other.save_as_common(folder.with_suffix(".pt"), weights)


def as_bare_base_model(model: Any, folder: Path) -> Path:
    """Without `transformer.`, as GPT2Model has it, and OpenAI's own files on the hub."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    torch.save(model.transformer.state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("save", [as_safetensors, as_pytorch_bin, as_common_of_several_gpus, as_bare_base_model])
def test_a_model_of_hugging_face_computes_the_same(
    layout: Layout, tmp_path: Path, save: Callable[[Any, Path], Path]
) -> None:
    assert_same_logits(layout, save(made(), tmp_path / "model"), made())


def assert_same_logits(layout: Layout, path: Path, model: Any) -> Any:
    checkpoint, at = imported(layout, path)
    with torch.no_grad():
        expected = model(other.some_tokens()).logits
        own = at.model.eval()(other.some_tokens())
    assert expected.std() > 0.5, "logits that differ enough to be told apart"
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-4)
    return checkpoint.manifest


@pytest.mark.parametrize(("function", "activation"), [("gelu", "gelu"), ("gelu_new", "gelu_tanh")])
def test_the_activation_is_that_of_the_folders_config(
    layout: Layout, tmp_path: Path, function: str, activation: str
) -> None:
    model = made(activation_function=function)
    manifest = assert_same_logits(layout, as_safetensors(model, tmp_path / "model"), model)
    assert (manifest.layout, manifest.settled.model.activation) == (foreign.HUGGING_FACE, activation)
    assert manifest.sources["activation"] == "config.activation_function"


@pytest.mark.parametrize("save", [as_safetensors, as_pytorch_bin])
def test_a_head_of_its_own_is_kept(layout: Layout, tmp_path: Path, save: Callable[[Any, Path], Path]) -> None:
    model = made(tie_word_embeddings=False)
    assert not torch.equal(model.lm_head.weight, model.transformer.wte.weight)
    manifest = assert_same_logits(layout, save(model, tmp_path / "model"), model)
    assert not manifest.settled.model.tied


@pytest.mark.parametrize("groups", other.GROUPINGS)
def test_moments_of_transposed_matrices_are_turned(layout: Layout, tmp_path: Path, groups: Callable[..., Any]) -> None:
    model = made()
    optimizer = other.adamw(groups(model))
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    other.train(model, optimizer, 3)
    checkpoint, at = imported(layout, other.save_as_common(tmp_path / "a.pt", model.state_dict(), optimizer))
    assert checkpoint.manifest.has_moments
    assert_same_step(model, optimizer, at, turned=TURNED)


def test_a_config_object_of_transformers_tells_its_facts(layout: Layout, tmp_path: Path) -> None:
    model = made(activation_function="gelu")
    path = other.save_as_common(tmp_path / "a.pt", model.state_dict(), config=model.config)
    manifest = assert_same_logits(layout, path, model)
    assert manifest.settled.model.activation == "gelu"


def test_the_loss_of_a_batch_is_that_of_hugging_faces_own(layout: Layout, tmp_path: Path) -> None:
    model, tokens = made(), other.some_tokens()
    _, at = imported(layout, as_safetensors(model, tmp_path / "model"))
    with torch.no_grad():
        expected = model(tokens, labels=tokens).loss.item()
        assert at.model.loss(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(expected, abs=1e-5)
