"""The layouts in which other programs write a GPT-2: where its tensors are, under which names, and which of the
optimizer's moments belong to which.

Works on descriptions (`unpickle.TensorShape`) and on tensors alike: the client reads shapes, the trainer
tensors, by the same functions.
"""

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptjobs import unpickle
from gptjobs.errors import Refused
from gptjobs.unpickle import TensorShape

OWN = "gptjobs"
NANOGPT = "nanoGPT"
COMMON = "state dict with its training state"
BARE = "bare state dict"
HUGGING_FACE = "Hugging Face folder"

WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
CONFIG_FILE = "config.json"

HEAD = "lm_head.weight"
TOKENS = "transformer.wte.weight"
POSITIONS = "transformer.wpe.weight"

_STATE_DICTS = ("model", "model_state_dict", "state_dict", "model_state", "weights")
_OPTIMIZERS = ("optimizer", "optimizer_state_dict", "optimizer_state")
_PREFIXES = ("_orig_mod.", "module.", "model.")  # of torch.compile, of DataParallel, of a wrapper
_FIRST = "transformer.h.0.attn.c_attn.weight"
_MASKS = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
_TRANSPOSED = re.compile(r".*\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
_HEADER_LIMIT = 100 * 1024 * 1024
"""bytes; safetensors' own limit"""
_BYTES_OF = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""a number's, by its type in a safetensors file"""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A checkpoint taken apart. `tensors` have GPT-2's names and the file's order, and are not yet turned (see
    `is_transposed`); `rest` is all that is neither tensors nor the optimizer's."""

    layout: str
    tensors: Mapping[str, Any]
    optimizer: Mapping[str, Any] | None
    rest: Mapping[str, Any]

    @property
    def is_transposed(self) -> bool:
        """Whether matrices are [in, out], as OpenAI's Conv1D has them."""
        rows, columns = self.tensors[_FIRST].shape
        return bool(columns == 3 * rows)

    def turns(self, name: str) -> bool:
        """Whether this tensor, and its moments, are to be transposed for a Linear."""
        return self.is_transposed and is_transposed_there(name)

    @property
    def groups(self) -> list[Mapping[str, Any]]:
        """Of the optimizer, each with its settings and the numbers of its tensors."""
        found = (self.optimizer or {}).get("param_groups")
        return [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []


def is_transposed_there(name: str) -> bool:
    """Whether Hugging Face, and OpenAI, have the matrix of that name as [in, out]."""
    return _TRANSPOSED.fullmatch(name) is not None


def is_folder(path: Path) -> bool:
    """Whether it is a folder as Hugging Face's `save_pretrained` writes it."""
    return (path / CONFIG_FILE).is_file() and any((path / each).is_file() for each in WEIGHTS_FILES)


def weights_in(path: Path) -> Path:
    """The file of tensors that a path means: itself, or that of a Hugging Face folder."""
    if not is_folder(path):
        return path
    return next(path / each for each in WEIGHTS_FILES if (path / each).is_file())


def describe(path: Path) -> Contents:
    """Take a file apart by its shapes, without torch. Raises Refused where it holds no GPT-2."""
    content = _safetensors_header(path) if path.suffix == ".safetensors" else unpickle.describe(path)
    made = take_apart(content, path)
    config = path.with_name(CONFIG_FILE)
    if made.layout != BARE or path.name not in WEIGHTS_FILES or not config.is_file():
        return made
    try:
        settings = json.loads(config.read_bytes())
    except ValueError as error:
        raise Refused(f"{config} is no JSON: {error}") from error
    return Contents(layout=HUGGING_FACE, tensors=made.tensors, optimizer=None, rest={"config": settings})


def _safetensors_header(path: Path) -> dict[str, TensorShape]:
    """The shapes in a safetensors file: eight bytes of the header's length, the header in JSON, the numbers."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _HEADER_LIMIT)))
        header.pop("__metadata__", None)
        found = {name: _described(each, 8 + length) for name, each in header.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"{path} is no whole safetensors file: {error!r}") from error
    end = 8 + length
    for each in sorted(found.values(), key=lambda each: (each.first, each.size)):
        if each.first != end:
            raise Refused(f"{path} is no whole safetensors file: its tensors leave a gap, or overlap")
        end += each.size
    if end != path.stat().st_size:
        raise Refused(f"{path} is no whole safetensors file: it has {path.stat().st_size:,} bytes, not {end:,}")
    return found


def _described(entry: Mapping[str, Any], start: int) -> TensorShape:
    """An entry of the header; raises ValueError where its place and its shape do not go together."""
    first, end = entry["data_offsets"]
    size = math.prod(entry["shape"]) * _BYTES_OF[entry["dtype"]]
    if type(first) is not int or end - first != size:
        raise ValueError(f"bytes {first} to {end} are no {entry['shape']} of {entry['dtype']}")
    return TensorShape(tuple(entry["shape"]), first=start + first, size=size)


def take_apart(content: Any, path: Path) -> Contents:
    """Find the tensors and the optimizer in a file's object. Raises Refused where they are no GPT-2."""
    if not isinstance(content, Mapping):
        raise Refused(f"{path} holds no state dict, but a {type(content).__name__}", hint="save a state_dict()")
    key = next((each for each in _STATE_DICTS if _is_state_dict(content.get(each))), None)
    if key is None and not _is_state_dict(content):
        raise Refused(
            f"{path} holds no tensors under {', '.join(_STATE_DICTS)} nor at its top",
            hint="save a state_dict() under one of these names",
        )
    if key is None:
        return Contents(layout=BARE, tensors=_named(content, path), optimizer=None, rest={})
    optimizer = next((content[each] for each in _OPTIMIZERS if isinstance(content.get(each), Mapping)), None)
    return Contents(
        layout=_layout(content),
        tensors=_named(content[key], path),
        optimizer=optimizer,
        rest={name: value for name, value in content.items() if name not in (key, *_OPTIMIZERS)},
    )


def _layout(content: Mapping[str, Any]) -> str:
    config = content.get("config")
    if "patience" in content and isinstance(config, Mapping) and "origins" in config:
        return OWN
    return NANOGPT if "model_args" in content or "iter_num" in content else COMMON


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and any(str(name).endswith(".weight") for name in value)


def _named(tensors: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """By GPT-2's names, without prefixes and masks. Raises Refused where they are not those of a whole GPT-2."""
    found = {_plain(str(name)): tensor for name, tensor in tensors.items()}
    found = {name: tensor for name, tensor in found.items() if not _MASKS.fullmatch(name)}
    shapes = {name: _shape(tensor) for name, tensor in found.items()}
    expected = _shapes_of_gpt2(shapes)
    problems = [f"no tensor {name}" for name in expected if name not in shapes and name != HEAD][:1]
    problems += [f"a tensor {name!r}" for name in shapes if name not in expected][:1]
    problems += [
        f"a tensor {name} of shape {shapes[name]}, not {expected[name]}"
        for name in expected
        if name in shapes and shapes[name] != expected[name]
    ][:1]
    if problems:
        raise Refused(
            f"{path} is no whole GPT-2: it has {', and '.join(problems)}", hint="gptjobs trains GPT-2's shape only"
        )
    return found


def _shape(value: Any) -> tuple[int, ...]:
    """Of a tensor or its description; that of a single number for anything else, settings with a `shape` too."""
    return () if isinstance(value, unpickle.Settings) else tuple(getattr(value, "shape", ()))


def _shapes_of_gpt2(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The tensors of a GPT-2 that has these tables, biases, number of blocks, and direction of matrices."""
    rows, width, *_ = *shapes.get(TOKENS, ()), 0, 0
    positions, *_ = *shapes.get(POSITIONS, ()), 0
    made: dict[str, tuple[int, ...]] = {TOKENS: (rows, width), POSITIONS: (positions, width), HEAD: (rows, width)}
    matrices = {"attn.c_attn": (3, 1), "attn.c_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}
    has_bias = any(name.endswith(".bias") for name in shapes)
    is_transposed = shapes.get(_FIRST) == (width, 3 * width)
    norms = ["transformer.ln_f"]
    for block in range(len({name.split(".")[2] for name in shapes if name.startswith("transformer.h.")})):
        norms += [f"transformer.h.{block}.ln_1", f"transformer.h.{block}.ln_2"]
        for name, (outputs, inputs) in matrices.items():
            shape = (outputs * width, inputs * width)
            made[f"transformer.h.{block}.{name}.weight"] = shape[::-1] if is_transposed else shape
            if has_bias:
                made[f"transformer.h.{block}.{name}.bias"] = (outputs * width,)
    for norm in norms:
        made |= {f"{norm}.{each}": (width,) for each in (("weight", "bias") if has_bias else ("weight",))}
    return made


def _plain(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


def moments(contents: Contents, *, tied: bool) -> dict[str, Mapping[str, Any]]:
    """Adam's state by tensor, as its program had it (see `turns`); empty where there is none, or where it
    cannot be told which moments are whose.

    A torch optimizer knows tensors by their number only. The orders in which programs hand them over are tried;
    the one in which every moment has its tensor's shape is it.
    """
    state = (contents.optimizer or {}).get("state")
    if not isinstance(state, Mapping) or not all(_is_adams(each) for each in state.values()):
        return {}
    lists = [group.get("params") for group in contents.groups]
    numbers = [number for each in lists if isinstance(each, list) for number in each if isinstance(number, int)]
    shapes = {name: _shape(tensor) for name, tensor in contents.tensors.items()}
    fitting: list[dict[str, Mapping[str, Any]]] = []
    for order in _orders(shapes, tied):
        owner = dict(zip(numbers, order, strict=False)) if len(numbers) == len(order) else {}
        owned = {owner[number]: each for number, each in state.items() if number in owner}
        if len(owned) == len(state) and all(_fits(each, shapes[name]) for name, each in owned.items()):
            fitting += [owned] if all(_differ(owned, each) for each in fitting) else []
    return fitting[0] if len(fitting) == 1 else {}


def _is_adams(entry: Any) -> bool:
    names = ("step", "exp_avg", "exp_avg_sq")
    if not isinstance(entry, Mapping) or not all(name in entry for name in names):
        return False
    step = entry["step"]
    return isinstance(step, int | float) or (hasattr(step, "shape") and _shape(step) in ((), (1,)))


def _fits(entry: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    return all(_shape(entry[name]) == shape for name in ("exp_avg", "exp_avg_sq"))


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return any(other.get(name) is not each for name, each in one.items())


def _orders(shapes: Mapping[str, tuple[int, ...]], tied: bool) -> Iterable[list[str]]:
    """All as registered; those that decay before the others (nanoGPT, Hugging Face's Trainer) and the other way
    round; each also by name (minGPT, early nanoGPT). What decays is matrices, with the tables or without. Of a
    tied pair a program hands over the first, which is the token table here."""
    registered = list(dict.fromkeys(TOKENS if tied and name == HEAD else name for name in shapes))
    for each in (registered, sorted(registered)):
        yield each
        for tables in ((), (TOKENS, POSITIONS)):
            decaying = [name for name in each if len(shapes[name]) >= 2 and name not in tables]
            others = [name for name in each if name not in decaying]
            yield from (decaying + others, others + decaying)
