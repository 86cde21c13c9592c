"""What is known of another program's checkpoint, and where each fact comes from: the rows of docs/import.md."""

import argparse
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from gptjobs import adoption, foreign
from gptjobs.checkpoint import Manifest
from gptjobs.config import HYPERPARAMETERS, NOT_SAID, Given, out_of_bounds
from gptjobs.errors import Refused
from gptjobs.layout import Layout
from tests import other_programs as other
from tests.other_programs import PlainGPT
from worker.trainer import stored

CONFIG = {"n_head": other.HEADS}
SEED_NAME = "checkpoint_gpt2_training_data_final_merged_step001000_11222025_144724.pt"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return PlainGPT().state_dict()


def read(layout: Layout, path: Path, **said: Any) -> Manifest:
    """The manifest that would commit this file; the trainer opens the file too."""
    manifest = adoption.adopt(layout, path, {name: Given(value, "told") for name, value in said.items()}).manifest
    assert foreign.TOKENS in stored.read(path, manifest)["model"]
    return manifest


@pytest.fixture
def common(layout: Layout, tmp_path: Path, weights: dict[str, Tensor]) -> Any:
    """Reads a file in the common layout; `told` goes to the import, the rest to the file's top."""

    def made(name: str = "a.pt", told: dict[str, Any] | None = None, **changes: Any) -> Manifest:
        return read(layout, other.save_as_common(tmp_path / name, weights, **changes), **(told or {}))

    return made


def test_nanogpts_settings_are_taken_with_their_places(layout: Layout, tmp_path: Path) -> None:
    model = PlainGPT()
    optimizer = other.adamw(other.nanogpts_groups(model))
    other.train(model, optimizer, 1)
    made = read(layout, other.save_as_nanogpt(tmp_path / "ckpt.pt", model, optimizer))
    train, origins = made.settled.train, made.settled.origins
    assert (made.step, made.losses.val_loss, made.losses.eval_context, made.has_moments) == (2000, 2.25, 16, True)
    assert (made.tokens, made.data_name, made.losses.train_loss) == (2000 * 20 * 16, "shakespeare", None)
    assert (train.batch_size, train.block_size, train.learning_rate, train.weight_decay) == (20, 16, 1e-2, 0.1)
    assert (train.schedule, train.warmup_steps, train.decay_steps, train.min_learning_rate) == (
        "cosine", 100, 5000, 1e-4,
    )  # fmt: skip
    assert (train.steps, train.grad_clip, train.beta1, train.epsilon) == (5000, 1.0, 0.85, other.EPSILON)
    assert origins["batch_size"] == "config.batch_size × config.gradient_accumulation_steps"
    assert origins["block_size"] == "model_args.block_size"
    assert origins["schedule"] == "config.decay_lr"
    assert origins["epsilon"] == "optimizer.param_groups"
    assert origins["patience"] == NOT_SAID
    assert made.sources["step"] == "iter_num"
    assert made.sources["val_loss"] == "best_val_loss"
    assert made.sources["train_loss"] == NOT_SAID
    assert made.sources["n_head"] == "model_args.n_head"
    assert made.sources["data"] == "config.dataset"
    assert made.sources["encoding"] == "a table of 256 rows"
    assert made.sources["tokens"] == "step × batch × block"


def test_the_first_loss_of_nanogpt_is_no_loss(layout: Layout, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = other.save_as_nanogpt(tmp_path / "ckpt.pt", PlainGPT())
    torch.save({**torch.load(path), "best_val_loss": 1e9, "iter_num": 0}, path)
    made = read(layout, path)
    assert (made.step, made.losses.val_loss, made.sources["val_loss"]) == (0, None, NOT_SAID)


def test_a_constant_rate_of_nanogpt_is_constant(layout: Layout, tmp_path: Path) -> None:
    made = read(layout, other.save_as_nanogpt(tmp_path / "ckpt.pt", PlainGPT(), decay_lr=False))
    assert (made.settled.train.schedule, made.settled.train.warmup_steps) == ("constant", 0)


def test_what_nobody_tells_is_not_said(common: Any) -> None:
    made = common(config=CONFIG, step=None, train_loss=None, val_loss=None)
    train = made.settled.train
    assert (made.step, made.tokens, made.data_name, made.losses.val_loss) == (0, 0, "unknown", None)
    assert (train.learning_rate, train.schedule, made.data_digest) == (1e-5, "constant", None)
    for name in ("learning_rate", "batch_size", "block_size", "steps", "dropout", "data"):
        assert not made.settled.knows(name)
    assert made.sources["step"].startswith(NOT_SAID)
    assert made.sources["tokens"].startswith(NOT_SAID)
    assert made.sources["written_at"] == "the file's time"


def test_a_name_of_the_seeds_style_tells_what_the_file_does_not(common: Any) -> None:
    made = common(SEED_NAME, config=CONFIG, step=None)
    assert (made.step, made.data_name) == (1000, "training_data_final_merged")
    assert {made.sources[fact] for fact in ("step", "data", "written_at")} == {"the file's name"}


def test_the_file_is_believed_before_its_name(common: Any) -> None:
    made = common(SEED_NAME, config={**CONFIG, "dataset": "sources/Other Book.md"}, step=1200)
    assert (made.step, made.data_name) == (1200, "Other_Book")
    assert (made.sources["step"], made.sources["data"]) == ("step", "config.dataset")


def test_a_name_without_a_real_date_or_step_is_no_source_for_them(common: Any) -> None:
    made = common("checkpoint_gpt2_text_step99999999999_99999999_999999.pt", config=CONFIG, step=None)
    assert (made.step, made.data_name, made.sources["written_at"]) == (0, "text", "the file's time")


def test_heads_are_those_of_a_gpt2_of_that_shape_where_no_setting_tells(layout: Layout, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = {"attn.c_attn": (384, 128), "attn.c_proj": (128, 128), "mlp.c_fc": (512, 128), "mlp.c_proj": (128, 512)}
    made = {"wte.weight": torch.zeros(256, 128), "wpe.weight": torch.zeros(8, 128), "ln_f.weight": torch.ones(128)}
    for block in range(4):
        made |= {f"h.{block}.{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}
        made |= {f"h.{block}.{name}.weight": torch.ones(128) for name in ("ln_1", "ln_2")}
    torch.save(made, tmp_path / "a.pt")
    manifest = adoption.adopt(layout, tmp_path / "a.pt").manifest
    assert (manifest.settled.model.n_head, manifest.sources["n_head"]) == (4, "nano has so many")
    assert not manifest.settled.model.bias


def test_what_is_told_is_believed_before_the_file(common: Any) -> None:
    made = common(told={"n_head": 8, "activation": "gelu_tanh", "encoding": "bytes"})
    assert (made.settled.model.n_head, made.settled.model.activation) == (8, "gelu_tanh")
    assert {made.sources[fact] for fact in ("n_head", "activation", "encoding")} == {"told"}


@pytest.mark.parametrize(
    ("name", "activation"),
    [("gelu", "gelu"), ("GELU", "gelu"), ("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh")],
)
def test_names_of_the_activation_are_known(common: Any, name: str, activation: str) -> None:
    made = common(config={**CONFIG, "activation_function": name})
    assert made.settled.model.activation == activation


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"activation": "relu"}, "the activation 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon 1e-06"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps '1e-5'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ({"n_head": 5}, "5 attention heads do not divide the width 32"),
    ],
)
def test_what_computes_something_else_is_refused(common: Any, setting: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused) as refusal:
        common(config=CONFIG | setting)
    assert words in refusal.value.message
    assert refusal.value.hint


@pytest.mark.parametrize(("said", "tied"), [(True, True), (False, False)])
def test_a_setting_about_the_head_is_believed_before_its_numbers(common: Any, said: bool, tied: bool) -> None:
    assert common(config={**CONFIG, "tie_word_embeddings": said}).settled.model.tied is tied


@pytest.mark.parametrize(
    ("rows", "encoding"),
    [(256, "bytes"), (319, "bytes"), (320, None), (65, None), (255, None), (50256, None), (50257, "r50k_base"),
     (50304, "r50k_base"), (51280, "r50k_base"), (51281, None)],
)  # fmt: skip
def test_the_encoding_is_told_by_the_rows_of_the_token_table(
    layout: Layout, tmp_path: Path, weights: dict[str, Tensor], rows: int, encoding: str | None
) -> None:
    table = torch.zeros(1, other.WIDTH).expand(rows, other.WIDTH)
    of_rows = {**weights, "transformer.wte.weight": table, "lm_head.weight": table}
    path = other.save_as_common(tmp_path / "a.pt", of_rows)
    if encoding is None:
        with pytest.raises(Refused, match=f"a table of {rows} tokens"):
            adoption.adopt(layout, path)
    else:
        assert adoption.adopt(layout, path).manifest.settled.train.encoding == encoding


def test_a_model_beyond_the_bounds_of_its_hyperparameters_is_refused(
    layout: Layout, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    table = torch.zeros(1, other.WIDTH).expand(70000, other.WIDTH)
    of_rows = {**weights, "transformer.wte.weight": table, "lm_head.weight": table}
    with pytest.raises(Refused, match="its vocab_size 70000 is above 65536"):
        read(layout, other.save_as_common(tmp_path / "a.pt", of_rows), encoding="r50k_base")


JUNK = [
    "text", "", math.nan, math.inf, -1, -1.5, 0, 10**400, 2**63, True, None, [], [1], {}, {"a": 1}, (1, 2),
    numpy.float64(math.nan), numpy.int64(-3), numpy.arange(3), torch.tensor(math.nan), torch.zeros(3),
    torch.tensor([1]), b"\xff",
]  # fmt: skip
SETTINGS = [
    "n_head", "batch_size", "gradient_accumulation_steps", "block_size", "learning_rate", "weight_decay", "beta1",
    "epsilon", "grad_clip", "dropout", "warmup_iters", "lr_decay_iters", "min_lr", "max_iters", "seed", "dataset",
    "decay_lr", "tie_word_embeddings",
]  # fmt: skip


def assert_in_bounds(made: Manifest) -> None:
    values = {**made.settled.to_dict()["model"], **made.settled.to_dict()["train"]}
    assert {name: out_of_bounds(HYPERPARAMETERS[name], value) for name, value in values.items()} == dict.fromkeys(
        values
    )
    assert 0 <= made.step <= 10**9
    assert made.tokens >= 0
    for loss in (made.losses.train_loss, made.losses.val_loss):
        assert loss is None or 0 <= loss <= 1000
    assert made.data_name


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_junk_in_settings_never_crashes_and_never_passes_bounds(common: Any, junk: Any) -> None:
    assert_in_bounds(common(config={"model": dict.fromkeys(SETTINGS, junk), **CONFIG}))
    with _refused_or_not():
        assert_in_bounds(common(config={**CONFIG, "activation": junk}))


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_junk_at_the_top_never_crashes_and_never_passes_bounds(common: Any, junk: Any) -> None:
    assert_in_bounds(common(step=junk, train_loss=junk, val_loss=junk))
    assert_in_bounds(
        common(**dict.fromkeys(("config", "model_args", "args", "optimizer_state_dict", "model"), junk), hparams=CONFIG)
    )


def test_a_truth_is_no_number(common: Any) -> None:
    made = common(step=True, val_loss=True, config=CONFIG)
    assert (made.step, made.losses.val_loss) == (0, None)


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_junk_in_the_optimizer_never_crashes_and_never_passes_bounds(common: Any, junk: Any) -> None:
    group = {"params": junk, "lr": junk, "betas": (junk, junk), "eps": junk, "weight_decay": junk}
    made = common(optimizer_state_dict={"state": {0: junk}, "param_groups": [group, junk]}, config=CONFIG)
    assert_in_bounds(made)
    assert not made.has_moments
    assert_in_bounds(common(optimizer_state_dict={"state": junk, "param_groups": junk, "betas": junk}))


@contextmanager
def _refused_or_not() -> Iterator[None]:
    """A sentence is no crash."""
    try:
        yield
    except Refused as refusal:
        assert refusal.message


@dataclass
class GPTConfig:
    n_head: int = other.HEADS
    batch_size: int = 8
    learning_rate: float = 1e-3


@dataclass(slots=True, frozen=True)
class TrainingArgs:
    n_head: int = other.HEADS
    batch_size: int = 8
    learning_rate: float = 1e-3


class SlottedArgs:
    __slots__ = ("batch_size", "learning_rate", "n_head")

    def __init__(self) -> None:
        self.n_head, self.batch_size, self.learning_rate = other.HEADS, 8, 1e-3


PLAIN = {"n_head": other.HEADS, "batch_size": 8, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    "config",
    [
        PLAIN,
        GPTConfig(),
        SlottedArgs(),
        argparse.Namespace(**PLAIN),
        SimpleNamespace(**PLAIN),
        {**PLAIN, "out": Path("out"), "device": torch.device("cpu"), "dtype": torch.bfloat16},
        {**PLAIN, "learning_rate": numpy.float64(1e-3), "batch_size": numpy.int64(8), "ids": numpy.arange(4)},
        {"model": GPTConfig(), "train": argparse.Namespace(batch_size=8)},
    ],
    ids=lambda config: type(config).__name__,
)
def test_settings_of_any_plain_kind_are_read(common: Any, config: Any) -> None:
    made = common(config=config)
    train = made.settled.train
    assert (made.settled.model.n_head, train.batch_size, train.learning_rate) == (other.HEADS, 8, 1e-3)


def test_settings_whose_names_are_lost_are_not_said(common: Any) -> None:
    """Slots of a frozen dataclass are stored as a list of values."""
    made = common(config=TrainingArgs(), hparams=CONFIG)
    assert (made.settled.model.n_head, made.settled.knows("batch_size")) == (other.HEADS, False)


@pytest.mark.parametrize("loss", [2.5, torch.tensor(2.5), torch.tensor(2.5).double(), numpy.float32(2.5)], ids=repr)
def test_a_loss_may_be_a_tensor_of_one_number(common: Any, loss: Any) -> None:
    assert common(val_loss=loss).losses.val_loss == 2.5


class EvilConfig:
    """Its name is that of settings; its pickle calls os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_a_class_of_settings_whose_pickle_runs_a_command_is_refused_and_not_run(
    layout: Layout, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    marker = tmp_path / "was-run"
    whole = read(layout, other.save_as_common(tmp_path / "whole.pt", weights))
    path = other.save_as_common(tmp_path / "evil.pt", weights, config=EvilConfig(f"touch {marker}"))
    with pytest.raises(Refused, match=r"names \w+\.system"):
        adoption.adopt(layout, path)
    with pytest.raises(Refused, match=r"names \w+\.system"):
        stored.read(path, whole)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()
