"""What is in a `.pt` file, without torch and without running anything in it.

A `.pt` is a zip with a pickle, and a pickle can name any function to call. This unpickler knows the few
types that checkpoints are made of, puts a description in the place of each tensor and an inert record in the
place of a program's own settings, and refuses the rest by name.
"""

import io
import math
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gptjobs.errors import Refused, UnsafePickle

_SETTINGS_CLASS = re.compile(r"\w*(Config|Args|Arguments|Settings|Hyperparameters|Params)|(Simple)?Namespace")
"""Names of classes that programs keep their settings in; an object of one is read as a Settings."""

_PROTOCOL = b"\x80\x02"
"""How the pickles begin that torch opens without running anything."""
LONGEST_PICKLE = 1 << 26
"""bytes; the pickle of gpt2-xl with its moments has a thousandth of them"""
_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class TensorShape:
    """Stands for a tensor. Its numbers lie in `size` bytes from byte `first` of `storage` on, which is an entry of
    the file's zip, or empty for the file itself; tensors may share them."""

    shape: tuple[int, ...]
    storage: str = field(default="", compare=False)
    first: int = field(default=0, compare=False)
    size: int = field(default=0, compare=False)


class Settings:
    """Stands for an object of a class of settings: its attributes, and nothing of its code."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Attributes, or attributes and slots. Without this method a pickle could set attributes of this class."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.update(part)


class _Storage(NamedTuple):
    kind: str
    key: str
    length: int
    """in numbers"""


class _Opaque:
    """Stands for a value that nobody reads, such as a random generator's array."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _path(*parts: str) -> str:
    return "/".join(parts)


def _nothing(*values: Any) -> None:
    return None


def _scalar(kind: "_Dtype", content: Any) -> float | int | None:
    """A number of numpy's."""
    form = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i"}.get(kind.name)
    raw = content.encode("latin-1") if isinstance(content, str) else content
    return struct.unpack(f"<{form}", raw)[0] if form and len(raw) == struct.calcsize(form) else None


class _Dtype:
    """Stands for numpy's type of a number."""

    def __init__(self, name: Any = "", *rest: Any) -> None:
        self.name = str(name)

    def __setstate__(self, state: Any) -> None:
        pass


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): lambda text, encoding="latin-1": text,  # bytes, as protocol 2 has them
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): tuple,
    ("torch", "device"): _nothing,
    ("torch.serialization", "_get_layout"): _nothing,
}
_INERT: dict[str, Any] = {
    **{f"pathlib.{name}": _path for name in ("PosixPath", "WindowsPath", "_local.PosixPath", "_local.WindowsPath")},
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Opaque,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _Opaque for core in ("core", "_core")},
}
_DTYPES = {"float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"}
_NUMBERS = {"FloatStorage": "<f", "DoubleStorage": "<d", "HalfStorage": "<e", "LongStorage": "<q", "IntStorage": "<i"}


def inert(name: str) -> Any:
    """What stands for a numpy value or for a program's settings, by its full name; None for anything else."""
    return _INERT.get(name) or (Settings if _SETTINGS_CLASS.fullmatch(name.rpartition(".")[2]) else None)


class _Describer(pickle.Unpickler):
    def __init__(self, content: bytes, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(content))
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if module == "torch" and (name in _DTYPES or name.endswith("Storage")):
            return name
        stand_in = _KNOWN.get((module, name)) or inert(f"{module}.{name}")
        if stand_in is not None:
            return stand_in
        raise UnsafePickle(f"it names {module}.{name}, which is no part of a checkpoint and may run code")

    def persistent_load(self, identity: Any) -> _Storage:
        _, kind, key, _, length = identity
        return _Storage(str(kind), str(key), length)

    def _tensor(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: Any
    ) -> Any:
        """A description; of a single number, such as a loss that was saved as a tensor, the number itself."""
        name = f"{self._folder}/data/{storage.key}"
        there, form = self._archive.getinfo(name).file_size, _NUMBERS.get(storage.kind)
        width = struct.calcsize(form) if form else there // max(1, storage.length)
        extent = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if math.prod(shape) else 0
        if min((offset, extent, *shape, *strides)) < 0 or (offset + extent) * width > there:
            raise ValueError(f"a tensor reaches beyond {name}")
        if tuple(shape) == () and form is not None:
            with self._archive.open(name) as numbers:
                numbers.seek(offset * width)
                return struct.unpack(form, numbers.read(width))[0]
        return TensorShape(tuple(shape), name, offset * width, extent * width)


def describe(path: Path) -> Any:
    """The file's object with a TensorShape for each tensor. Raises UnsafePickle where it names code, Refused
    where it is no whole `.pt` file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [each for each in archive.namelist() if each.endswith("/data.pkl")]
            if len(names) != 1:
                raise Refused(f"{path} is no PyTorch checkpoint: its zip holds no single data.pkl")
            if archive.getinfo(names[0]).file_size > LONGEST_PICKLE:
                raise Refused(f"{path} is no PyTorch checkpoint: its data.pkl would unpack to more than any has")
            content = archive.read(names[0])
            described = _Describer(content, archive, names[0].removesuffix("/data.pkl")).load()
            if not content.startswith(_PROTOCOL):
                raise Refused(
                    f"{path} has a pickle of another protocol than torch.save's own",
                    hint="torch.save without pickle_protocol",
                )
            return described
    except UnsafePickle as error:
        raise UnsafePickle(
            f"{path} was not opened: {error.message}",
            hint="take one from a source you trust, a state_dict() and not a whole model; nothing in this one was run",
        ) from None
    except (Refused, PermissionError):
        raise
    except zipfile.BadZipFile as error:
        raise Refused(f"{path} is no whole PyTorch checkpoint: {error}", hint="gptjobs checkpoints list") from error
    except Exception as error:  # a damaged pickle or zip may raise anything, as their docs say
        raise Refused(f"{path} is damaged: its pickle cannot be read ({error})") from error


def are_equal(path: Path, one: TensorShape, other: TensorShape) -> bool:
    """Whether two tensors of the file are the same numbers: one place, or two with the same bytes."""
    if (one.storage, one.first, one.size) == (other.storage, other.first, other.size):
        return True
    pieces = zip(numbers(path, one), numbers(path, other), strict=True)
    try:
        return one.size == other.size and all(first == second for first, second in pieces)
    except zipfile.BadZipFile as error:
        raise Refused(f"{path} is damaged: {error}") from error


def numbers(path: Path, tensor: TensorShape) -> Iterator[bytes]:
    """The tensor's bytes, in pieces."""
    with path.open("rb") as file, zipfile.ZipFile(file).open(tensor.storage) if tensor.storage else file as numbers:
        numbers.seek(tensor.first)
        for left in range(tensor.size, 0, -_READ_BYTES):
            yield numbers.read(min(left, _READ_BYTES))
