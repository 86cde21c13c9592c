"""The layouts in which other programs write a GPT-2: where its tensors are, under which names, and which of the
optimizer's moments belong to which.

Works on descriptions (`unpickle.TensorShape`) and on tensors alike: the client reads shapes, the trainer
tensors, by the same functions.
"""

import json
import mmap
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
_MASKS = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
_TRANSPOSED = re.compile(r".*\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
_HEADER_LIMIT = 100 * 1024 * 1024
"""bytes; safetensors' own limit"""


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
        rows, columns = self.tensors["transformer.h.0.attn.c_attn.weight"].shape
        return bool(columns == 3 * rows)

    def turns(self, name: str) -> bool:
        """Whether this tensor, and its moments, are to be transposed for a Linear."""
        return self.is_transposed and _TRANSPOSED.fullmatch(name) is not None


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
    if made.layout == BARE and path.name in WEIGHTS_FILES and config.is_file():
        settings = json.loads(config.read_bytes())
        return Contents(layout=HUGGING_FACE, tensors=made.tensors, optimizer=None, rest={"config": settings})
    return made


def _safetensors_header(path: Path) -> dict[str, TensorShape]:
    """The shapes in a safetensors file: eight bytes of the header's length, the header in JSON, the numbers."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if not 2 <= length <= _HEADER_LIMIT:
            raise Refused(f"{path} is no whole safetensors file")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            ends = [each["data_offsets"][1] for each in header.values()]
            found = {
                name: TensorShape(tuple(each["shape"]), ":".join(map(str, each["data_offsets"])))
                for name, each in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(f"{path} is no whole safetensors file: {error}") from error
    if path.stat().st_size != 8 + length + max(ends, default=0):
        raise Refused(f"{path} is no whole safetensors file: it is shorter than its header says")
    return found


def are_equal(path: Path, one: TensorShape, other: TensorShape) -> bool:
    """Whether two tensors of a file are the same numbers."""
    if one.storage == other.storage:
        return True
    if path.suffix != ".safetensors":
        return unpickle.are_equal(path, one, other)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _numbers(content, one) == _numbers(content, other)


def _numbers(content: mmap.mmap, tensor: TensorShape) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    first, end = (8 + length + int(each) for each in tensor.storage.split(":"))
    return content[first:end]


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
    if "patience" in content and "config" in content:
        return OWN
    return NANOGPT if "model_args" in content or "iter_num" in content else COMMON


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and any(str(name).endswith("wte.weight") for name in value)


def _named(tensors: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """By GPT-2's names, without prefixes and without masks. Raises Refused for a tensor that GPT-2 has not."""
    found = {}
    for own, tensor in tensors.items():
        name = _plain(str(own))
        if _MASKS.fullmatch(name):
            continue
        if not _is_of_gpt2(name):
            raise Refused(f"{path} is no GPT-2: it has a tensor {own}", hint="gptjobs trains GPT-2's shape only")
        found[name] = tensor
    if "transformer.h.0.attn.c_attn.weight" not in found or POSITIONS not in found:
        raise Refused(f"{path} is no GPT-2: it has no blocks or no table of positions")
    return found


def _plain(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


def _is_of_gpt2(name: str) -> bool:
    block = r"transformer\.h\.\d+\.(ln_1|ln_2|attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.(weight|bias)"
    return bool(re.fullmatch(rf"{block}|transformer\.(wte|wpe)\.weight|transformer\.ln_f\.(weight|bias)", name)) or (
        name == HEAD
    )


def moments(contents: Contents, *, tied: bool) -> dict[str, Mapping[str, Any]]:
    """Adam's state by tensor, as its program had it (see `turns`); empty where there is none, or where it
    cannot be told which moments are whose.

    A torch optimizer knows tensors by their number only. The orders in which programs hand them over are tried;
    the one in which every moment has its tensor's shape is it.
    """
    optimizer = contents.optimizer or {}
    state = optimizer.get("state", {})
    if not all(isinstance(each, Mapping) and "exp_avg" in each and "exp_avg_sq" in each for each in state.values()):
        return {}
    numbers = [number for group in optimizer.get("param_groups", ()) for number in group["params"]]
    shapes = {name: tuple(tensor.shape) for name, tensor in contents.tensors.items()}
    for order in _orders(shapes, tied):
        names = dict(zip(numbers, order, strict=False))
        if len(numbers) == len(order) and all(
            number in names and tuple(each["exp_avg"].shape) == shapes[names[number]] for number, each in state.items()
        ):
            return {names[number]: each for number, each in state.items()}
    return {}


def _orders(shapes: Mapping[str, tuple[int, ...]], tied: bool) -> Iterable[list[str]]:
    """All as registered; matrices before vectors (nanoGPT, Hugging Face's Trainer) and the other way round; each
    also by name (minGPT). Of a tied pair a program hands over the first, which is the token table here."""
    registered = list(dict.fromkeys(TOKENS if tied and name == HEAD else name for name in shapes))
    for each in (registered, sorted(registered)):
        matrices = [name for name in each if len(shapes[name]) >= 2]
        vectors = [name for name in each if len(shapes[name]) < 2]
        yield from (each, matrices + vectors, vectors + matrices)
