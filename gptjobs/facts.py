"""What a checkpoint of another program tells of itself: its model, how it was trained, its step and losses.

A fact comes from the file, else from its name, else from GPT-2's customs; one that none of them tells stands as
not said, and the resume contract shows it so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptjobs import foreign, unpickle
from gptjobs.checkpoint import Losses
from gptjobs.config import (
    BYTES,
    HYPERPARAMETERS,
    MODEL_FIELDS,
    NOT_SAID,
    PRESETS,
    TRAIN_FIELDS,
    VOCABULARY,
    ModelConfig,
    Overrides,
    Settled,
    TrainConfig,
    known,
    out_of_bounds,
)
from gptjobs.errors import Refused
from gptjobs.foreign import Contents
from gptjobs.layout import dataset_name, parse_checkpoint_name, seconds_of_stamp

_PADDING = 1024
"""Rows beyond the vocabulary that a token table may have, to be a multiple of a power of two."""
_RESUME_RATE = 1e-5
"""Where nothing tells the learning rate."""
_MOST_STEPS = HYPERPARAMETERS["steps"].metadata["high"]
_HIGHEST_LOSS = 1e3
"""Nats; a higher one is what a program begins with, not one that it saw."""

_NAMES: Mapping[str, tuple[str, ...]] = {
    # a hyperparameter's name here, and what others call it
    "n_head": ("n_head", "n_heads", "num_heads", "num_attention_heads"),
    "batch_size": ("batch_size", "train_batch_size"),
    "block_size": ("block_size", "context_length", "seq_len", "seq_length", "max_seq_len"),
    "learning_rate": ("learning_rate", "lr", "max_lr"),
    "weight_decay": ("weight_decay",),
    "beta1": ("beta1", "adam_beta1"),
    "beta2": ("beta2", "adam_beta2"),
    "epsilon": ("epsilon", "adam_epsilon"),
    "grad_clip": ("grad_clip", "max_grad_norm", "clip_grad"),
    "dropout": ("dropout", "resid_pdrop"),
    "warmup_steps": ("warmup_steps", "warmup_iters"),
    "decay_steps": ("decay_steps", "lr_decay_iters"),
    "min_learning_rate": ("min_learning_rate", "min_lr"),
    "steps": ("max_iters", "max_steps", "total_steps"),
    "seed": ("seed",),
    "eval_interval": ("eval_interval",),
}
_STEPS = ("step", "iter_num", "global_step", "iteration", "steps")
_VAL_LOSSES = ("val_loss", "best_val_loss", "validation_loss", "eval_loss")
_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_tanh", "tanh", "new_gelu", "gelu_fast")
_EXACT = ("gelu", "exact", "none", "gelu_exact")


@dataclass
class Facts:
    """What is known of a file; each fact that is read notes its source."""

    contents: Contents
    path: Path
    said: Overrides
    sources: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Gather the settings: (where they stand, name → value), the nearest to the model first."""
        rest = self.contents.rest
        self._settings = [
            (name, settings)
            for name in ("model_args", "model_config", "config", "args", "hyperparameters", "hparams", "train_config")
            if (settings := _as_mapping(rest.get(name)))
        ]
        for name, settings in list(self._settings):
            nested = {each: _as_mapping(settings.get(each)) for each in ("model", "train", "training", "optimizer")}
            self._settings += [(f"{name}.{each}", found) for each, found in nested.items() if found]
        self._named = parse_checkpoint_name(self.path.name)

    def _note(self, fact: str, source: str) -> None:
        self.sources[fact] = source

    def _setting(self, *names: str, fits: Callable[[Any], bool] = lambda value: True) -> tuple[Any, str] | None:
        """The first setting of one of these names whose value fits, and where it stands."""
        for where, settings in self._settings:
            for name in names:
                if settings.get(name) is not None and fits(settings[name]):
                    return settings[name], f"{where}.{name}"
        return None

    def _hyperparameter(self, name: str) -> tuple[Any, str] | None:
        """The first setting that others call so and that is within our bounds."""
        return self._setting(*_NAMES[name], fits=lambda value: out_of_bounds(HYPERPARAMETERS[name], value) is None)

    def _top(self, fact: str, names: tuple[str, ...], high: float) -> float | None:
        """A number from 0 to `high` at the file's top."""
        for name in names:
            value = self.contents.rest.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= high:
                self._note(fact, name)
                return value
        self._note(fact, NOT_SAID)
        return None

    def step(self) -> int:
        found = self._top("step", _STEPS, _MOST_STEPS)
        if found is not None:
            return int(found)
        if self._named is not None and self._named.step <= _MOST_STEPS:
            self._note("step", "the file's name")
            return self._named.step
        self._note("step", f"{NOT_SAID}: counted from here")
        return 0

    def losses(self) -> Losses:
        train, val = (
            self._top(fact, names, _HIGHEST_LOSS)
            for fact, names in (("train_loss", ("train_loss", "loss")), ("val_loss", _VAL_LOSSES))
        )
        context = self._hyperparameter("block_size") if val is not None else None
        return Losses(
            train_loss=None if train is None else float(train),
            val_loss=None if val is None else float(val),
            eval_context=context[0] if context else None,
        )

    def tokens(self) -> int:
        """Trained on so far, as far as step, batch and block tell."""
        batch, block = self._batch_size(), self._hyperparameter("block_size")
        if batch is None or block is None:
            self._note("tokens", f"{NOT_SAID}: counted from here")
            return 0
        self._note("tokens", "step × batch × block")
        return self.step() * int(batch[0]) * int(block[0])

    def data_name(self) -> str:
        found = self._setting("dataset", "data", "dataset_name", fits=lambda value: isinstance(value, str))
        if found is None and self._named is not None:
            found = self._named.dataset, "the file's name"
        self._note("data", found[1] if found else NOT_SAID)
        return dataset_name(found[0]) if found else "unknown"

    def written_at(self) -> float:
        seconds = seconds_of_stamp(self._named.stamp) if self._named else None
        self._note("written_at", "the file's name" if seconds is not None else "the file's time")
        return self.path.stat().st_mtime if seconds is None else seconds

    def model(self) -> ModelConfig:
        """Raises Refused where a number of heads or an encoding must be told."""
        tensors = self.contents.tensors
        rows, width = tensors[foreign.TOKENS].shape
        layers = len({name.split(".")[2] for name in tensors if name.startswith("transformer.h.")})
        self._refuse_what_is_not_built()
        made = ModelConfig(
            n_layer=layers,
            n_embd=width,
            n_head=self._heads(layers, width),
            n_positions=tensors[foreign.POSITIONS].shape[0],
            vocab_size=rows,
            activation=self._activation(),
            bias="transformer.ln_f.bias" in tensors,
            tied=self._is_tied(),
        )
        for name, each in MODEL_FIELDS.items():
            if problem := out_of_bounds(each, getattr(made, name)):
                raise Refused(f"{self.path} cannot be trained: its {name} {problem}")
        return made

    def _heads(self, layers: int, width: int) -> int:
        given = self.said.get("n_head")
        found = (given.value, given.origin) if given else self._hyperparameter("n_head")
        if found is None:
            for name, shape in PRESETS.items():
                if (shape["n_layer"], shape["n_embd"]) == (layers, width):
                    found = shape["n_head"], f"{name} has so many"
        if found is None:
            raise Refused(
                f"{self.path} does not say how many attention heads its {layers} layers of width {width} have",
                hint=f"gptjobs checkpoints import {self.path} --n-head N",
            )
        self._note("n_head", found[1])
        if width % found[0]:
            raise Refused(f"{found[0]} attention heads do not divide the width {width}", hint="--n-head")
        return int(found[0])

    def _activation(self) -> str:
        given, names = self.said.get("activation"), ("activation_function", "activation", "act_fn", "hidden_act")
        found = (given.value, given.origin) if given else self._setting(*names, fits=lambda each: isinstance(each, str))
        if found is not None:
            self._note("activation", found[1])
            if found[0].lower() in _TANH:
                return "gelu_tanh"
            if found[0].lower() in _EXACT:
                return "gelu"
            raise Refused(f"{self.path} was trained with the activation {found[0]!r}", hint="gptjobs has GELU only")
        exact = self.contents.layout == foreign.NANOGPT or not self.contents.is_transposed
        self._note("activation", "as nanoGPT has it; --activation" if exact else "as Hugging Face has it; --activation")
        return "gelu" if exact else "gelu_tanh"

    def _is_tied(self) -> bool:
        head, table = self.contents.tensors.get(foreign.HEAD), self.contents.tensors[foreign.TOKENS]
        ties = self._setting("tie_word_embeddings", fits=lambda value: isinstance(value, bool))
        if head is None:
            return True
        if ties is not None:
            return bool(ties[0])
        return unpickle.are_equal(self.path, head, table)

    def _refuse_what_is_not_built(self) -> None:
        """Raise Refused for what would make the model compute something else."""
        for name, usual in (
            ("layer_norm_epsilon", 1e-5),
            ("layer_norm_eps", 1e-5),
            ("scale_attn_weights", True),
            ("scale_attn_by_inverse_layer_idx", False),
            ("add_cross_attention", False),
        ):
            found = self._setting(name)
            if found is not None and found[0] != usual:
                raise Refused(f"{self.path} has {name} {found[0]!r}", hint=f"gptjobs trains GPT-2 with {usual} only")

    def _batch_size(self) -> tuple[int, str] | None:
        """Windows in an update; nanoGPT's batch is one of several whose gradients add up."""
        batch = self._hyperparameter("batch_size")
        added = self._setting(
            "gradient_accumulation_steps",
            "grad_accum",
            fits=lambda value: out_of_bounds(TRAIN_FIELDS["batch_size"], value) is None,
        )
        if batch is None or added is None:
            return batch
        return batch[0] * added[0], f"{batch[1]} × {added[1]}"

    def settled(self, model: ModelConfig) -> Settled:
        """Every value of the file that has a name here, within its bounds; the others as not said."""
        values: dict[str, Any] = {name: each.default for name, each in TRAIN_FIELDS.items()}
        origins = dict.fromkeys(HYPERPARAMETERS, NOT_SAID)

        def put(name: str, found: tuple[Any, str] | None) -> None:
            if found is not None and out_of_bounds(HYPERPARAMETERS[name], found[0]) is None:
                values[name], origins[name] = type(values[name])(found[0]), found[1]

        for name in _NAMES:
            if name in values:
                put(name, self._batch_size() if name == "batch_size" else self._hyperparameter(name))
        put("encoding", self._encoding(model.vocab_size))
        self._put_optimizer(put, origins)
        self._put_schedule(put, values, origins)
        values["block_size"] = min(values["block_size"], model.n_positions)
        if origins["steps"] == NOT_SAID or values["steps"] <= self.step():
            values["steps"], origins["steps"] = max(1, self.step()), NOT_SAID
        origins |= {name: self.sources.get(name, "the tensors") for name in MODEL_FIELDS}
        return Settled(model=model, train=TrainConfig(**known(TRAIN_FIELDS, values)), start_step=0, origins=origins)

    def _put_optimizer(self, put: Any, origins: Mapping[str, str]) -> None:
        """What Adam's own state tells and no setting does; another optimizer's rate is none for Adam."""
        groups = [each for each in self.contents.groups if _is_pair(each.get("betas"))]
        if not groups:
            return
        first, where = groups[0], "optimizer.param_groups"
        found = {"learning_rate": first.get("lr"), "epsilon": first.get("eps")}
        found["beta1"], found["beta2"] = first["betas"]
        decays = [each.get("weight_decay") for each in groups]
        found["weight_decay"] = max((each for each in decays if isinstance(each, int | float)), default=None)
        for name, value in found.items():
            if origins[name] == NOT_SAID:
                put(name, (value, where))

    def _put_schedule(self, put: Any, values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
        """nanoGPT's cosine goes on; what no setting tells is constant."""
        decays = self._setting("decay_lr")
        if decays is not None and decays[0] and origins["decay_steps"] != NOT_SAID:
            put("schedule", ("cosine", decays[1]))
            return
        put("schedule", ("constant", "no schedule is in the file"))
        put("warmup_steps", (0, "no schedule is in the file"))
        if origins["learning_rate"] == NOT_SAID:
            put("learning_rate", (_RESUME_RATE, NOT_SAID))

    def _encoding(self, rows: int) -> tuple[str, str]:
        """Raises Refused for a token table of no encoding that is here."""
        given = self.said.get("encoding")
        found = (given.value, given.origin) if given else None
        for name in ("r50k_base", BYTES):
            if found is None and 0 <= rows - VOCABULARY[name] < (_PADDING if name != BYTES else _PADDING // 16):
                found = name, f"a table of {rows} rows"
        if found is None or VOCABULARY[found[0]] > rows:
            raise Refused(
                f"{self.path} has a table of {rows} tokens, which is that of no encoding here "
                f"({', '.join(f'{name}: {count}' for name, count in VOCABULARY.items())})",
                hint="a model of GPT-2's encoding or of bytes; other alphabets, such as nanoGPT's characters, are not",
            )
        self._note("encoding", found[1])
        return found


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


def _as_mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, unpickle.Settings):
        return vars(value)
    return value if isinstance(value, Mapping) else {}
