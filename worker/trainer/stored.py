"""Tensors from a checkpoint's file, gptjobs' own or another program's: weights and moments as this model has them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptjobs import foreign, unpickle
from gptjobs.checkpoint import Manifest
from gptjobs.errors import Refused


def read(path: Path, manifest: Manifest) -> dict[str, Any]:
    """The checkpoint's `model`, `optimizer` (moments by tensor) and, of gptjobs' own, the rest."""
    content = _safetensors(path) if path.suffix == ".safetensors" else _load(path)
    if manifest.layout == foreign.OWN:
        return content
    contents, tied = foreign.take_apart(content, path), manifest.settled.model.tied
    weights = {name: _turned(contents, name, each) for name, each in contents.tensors.items()}
    if tied:
        weights.pop(foreign.HEAD, None)
    moments = {name: _moments(contents, name, each) for name, each in foreign.moments(contents, tied=tied).items()}
    return {"model": weights, "optimizer": moments}


def _load(path: Path) -> dict[str, Any]:
    """Tensors and plain values only: a pickle that names anything else is refused, and none of it run. What another
    program kept its settings in is inert here."""
    unpickle.describe(path)  # says by name what torch would refuse in words of its own
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins: list[Any] = [(stand_in, name) for name in unknown if (stand_in := unpickle.inert(name)) is not None]
        with torch.serialization.safe_globals(stand_ins):
            loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle or zip may raise anything, as their docs say
        raise Refused(f"{path} cannot be opened: {_first_line(error)}") from error
    return loaded


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise Refused(f"{path} cannot be opened: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _turned(contents: foreign.Contents, name: str, tensor: Tensor) -> Tensor:
    return tensor.T if contents.turns(name) else tensor


def _moments(contents: foreign.Contents, name: str, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        "step": torch.as_tensor(entry["step"], dtype=torch.float32).reshape(()),
        "exp_avg": _turned(contents, name, entry["exp_avg"]),
        "exp_avg_sq": _turned(contents, name, entry["exp_avg_sq"]),
    }
