"""What is in a `.pt` file, without torch and without running anything in it.

A `.pt` is a zip with a pickle, and a pickle can name any function to call. This unpickler knows the few
types that checkpoints are made of, puts a description in the place of each tensor, and refuses the rest
by name.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptjobs.errors import Refused, UnsafePickle


@dataclass(frozen=True)
class TensorShape:
    """Stands for a tensor."""

    shape: tuple[int, ...]


def _tensor(storage: Any, offset: int, shape: tuple[int, ...], *rest: Any) -> TensorShape:
    return TensorShape(tuple(shape))


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _nothing(*values: Any) -> None:
    return None


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
    ("torch", "device"): _nothing,
    ("torch.serialization", "_get_layout"): _nothing,
}
_DTYPES = {"float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"}


class _Describer(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module == "torch" and (name in _DTYPES or name.endswith("Storage")):
            return _nothing
        raise UnsafePickle(f"it names {module}.{name}, which is no part of a checkpoint and may run code")

    def persistent_load(self, identity: Any) -> None:
        return None


def describe(path: Path) -> Any:
    """The file's object with a TensorShape for each tensor. Raises UnsafePickle where it names code, Refused
    where it is no whole `.pt` file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [each for each in archive.namelist() if each.endswith("/data.pkl")]
            if len(names) != 1:
                raise Refused(f"{path} is no PyTorch checkpoint: its zip holds no single data.pkl")
            return _Describer(io.BytesIO(archive.read(names[0]))).load()
    except UnsafePickle as error:
        raise UnsafePickle(
            f"{path} was not opened: {error.message}",
            hint="take a checkpoint from a source you trust; nothing in this one was run",
        ) from None
    except Refused:
        raise
    except zipfile.BadZipFile as error:
        raise Refused(f"{path} is no whole PyTorch checkpoint: {error}", hint="gptjobs checkpoints list") from error
    except Exception as error:  # a damaged pickle or zip may raise anything, as their docs say
        raise Refused(f"{path} is damaged: its pickle cannot be read ({error})") from error
