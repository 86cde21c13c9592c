"""A checkpoint as other programs write theirs: Hugging Face's folder, and nanoGPT's file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptjobs import durable
from gptjobs.checkpoint import Checkpoint
from gptjobs.config import BYTES, VOCABULARY
from gptjobs.errors import Refused
from gptjobs.foreign import HEAD, TOKENS, is_transposed_there
from gptjobs.layout import Layout
from worker.trainer import stored

_NEVER_EVALUATED = 1e9
"""nanoGPT's own word for it"""


def hugging_face(layout: Layout, found: Checkpoint, folder: Path, tokenizer: Mapping[str, bytes]) -> None:
    """Write the folder: `model.safetensors`, `config.json` and the tokenizer's files."""
    from safetensors.torch import save

    model, weights = found.manifest.settled.model, _weights(layout, found)
    if model.tied:
        weights.pop(HEAD, None)
    tensors = {name: (each.t() if is_transposed_there(name) else each).contiguous() for name, each in weights.items()}
    if not model.bias:  # transformers has no GPT-2 without: those of nought do the same
        for name in [each for each in tensors if each.endswith(".weight") and _has_bias_there(each)]:
            width = tensors[name].shape[-1]
            tensors[f"{name.removesuffix('weight')}bias"] = torch.zeros(width)
    encoding = found.manifest.settled.train.encoding
    end = None if encoding == BYTES else VOCABULARY[encoding] - 1
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_positions": model.n_positions,
        "n_embd": model.n_embd,
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "activation_function": "gelu_new" if model.activation == "gelu_tanh" else "gelu",
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": model.tied,
        "bos_token_id": end,
        "eos_token_id": end,
        "torch_dtype": "float32",
    }
    durable.make_folder(folder)
    for name, content in tokenizer.items():
        durable.write(folder / name, content)
    durable.write(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    durable.write(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))


def _has_bias_there(name: str) -> bool:
    return ".ln_" in name or is_transposed_there(name)


def nanogpt(layout: Layout, found: Checkpoint, path: Path) -> None:
    """Write what nanoGPT's `--init_from=resume` reads, with Adam's moments where there are some."""
    manifest = found.manifest
    model, train = manifest.settled.model, manifest.settled.train
    if not model.tied:
        raise Refused(
            f"{found.name} has a head of its own, where nanoGPT has the token table's", hint="--format hugging-face"
        )
    weights = {**_weights(layout, found)}
    weights.setdefault(HEAD, weights[TOKENS])
    content = {
        "model": weights,
        "optimizer": _optimizer(layout, found, weights) if manifest.has_moments else None,
        "model_args": {
            "n_layer": model.n_layer,
            "n_head": model.n_head,
            "n_embd": model.n_embd,
            "block_size": model.n_positions,
            "bias": model.bias,
            "vocab_size": model.vocab_size,
            "dropout": train.dropout,
        },
        "iter_num": manifest.step,
        "best_val_loss": manifest.losses.val_loss if manifest.losses.val_loss is not None else _NEVER_EVALUATED,
        "config": {
            "dataset": manifest.data_name,
            "batch_size": train.batch_size,
            "block_size": train.block_size,
            "learning_rate": train.learning_rate,
        },
    }
    beside = durable.temporary(path)
    torch.save(content, beside)
    durable.place(beside, path)


def _weights(layout: Layout, found: Checkpoint) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = stored.read(layout.path(found.name), found.manifest)["model"]
    return weights


def _optimizer(layout: Layout, found: Checkpoint, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """AdamW's state, its tensors numbered as nanoGPT numbers them: matrices first, then the rest, each in the model's
    order."""
    train = found.manifest.settled.train
    moments = stored.read(layout.path(found.name), found.manifest)["optimizer"]
    own = [name for name in weights if name in moments]  # the head is the token table's
    decayed = [name for name in own if weights[name].dim() >= 2]
    rest = [name for name in own if weights[name].dim() < 2]
    numbers = {name: number for number, name in enumerate([*decayed, *rest])}
    settings = {
        "lr": train.learning_rate, "betas": (train.beta1, train.beta2), "eps": train.epsilon, "amsgrad": False,
        "maximize": False, "foreach": None, "capturable": False, "differentiable": False, "fused": None,
        "decoupled_weight_decay": True,
    }  # fmt: skip
    return {
        "state": {numbers[name]: {**moments[name]} for name in own},
        "param_groups": [
            {**settings, "weight_decay": train.weight_decay, "params": [numbers[each] for each in decayed]},
            {**settings, "weight_decay": 0.0, "params": [numbers[each] for each in rest]},
        ],
    }
