"""What is in a `.pt` file, without torch and without running anything in it.

A `.pt` is a zip with a pickle, and a pickle can name any function to call. This unpickler knows the few
types that checkpoints are made of, puts a description in the place of each tensor and an inert record in the
place of a program's own settings, and refuses the rest by name.
"""

import io
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gptjobs.errors import Refused, UnsafePickle

_SETTINGS_CLASS = re.compile(r"[A-Za-z]\w*(Config|Args|Arguments|Settings|Hyperparameters|Params)|Namespace")
"""Names of classes that programs keep their settings in; an object of one is read as a Settings."""

_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class TensorShape:
    """Stands for a tensor. `storage` names its numbers in the file; two tensors may share one."""

    shape: tuple[int, ...]
    storage: str = field(default="", compare=False)


class Settings:
    """Stands for an object of a class of settings: its attributes, and nothing of its code."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.__dict__.update(named)


class _Storage(NamedTuple):
    kind: str
    key: str


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


def _scalar(kind: "_Dtype", content: Any = b"") -> float | int | None:
    """A number of numpy's."""
    form = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i"}.get(kind.name)
    raw = content.encode("latin-1") if isinstance(content, str) else content
    return struct.unpack(f"<{form}", raw)[0] if form and len(raw) == struct.calcsize(form) else None


class _Dtype:
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
        _, kind, key, *_ = identity
        return _Storage(str(kind), str(key))

    def _tensor(self, storage: _Storage, offset: int, shape: tuple[int, ...], *rest: Any) -> Any:
        """A description; of a single number, such as a loss that was saved as a tensor, the number itself."""
        name = f"{self._folder}/data/{storage.key}"
        form = _NUMBERS.get(storage.kind)
        if tuple(shape) == () and form is not None:
            size = struct.calcsize(form)
            with self._archive.open(name) as numbers:
                numbers.seek(offset * size)
                return struct.unpack(form, numbers.read(size))[0]
        return TensorShape(tuple(shape), name)


def describe(path: Path) -> Any:
    """The file's object with a TensorShape for each tensor. Raises UnsafePickle where it names code, Refused
    where it is no whole `.pt` file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [each for each in archive.namelist() if each.endswith("/data.pkl")]
            if len(names) != 1:
                raise Refused(f"{path} is no PyTorch checkpoint: its zip holds no single data.pkl")
            return _Describer(archive.read(names[0]), archive, names[0].removesuffix("/data.pkl")).load()
    except UnsafePickle as error:
        raise UnsafePickle(
            f"{path} was not opened: {error.message}",
            hint="take one from a source you trust, a state_dict() and not a whole model; nothing in this one was run",
        ) from None
    except Refused:
        raise
    except zipfile.BadZipFile as error:
        raise Refused(f"{path} is no whole PyTorch checkpoint: {error}", hint="gptjobs checkpoints list") from error
    except Exception as error:  # a damaged pickle or zip may raise anything, as their docs say
        raise Refused(f"{path} is damaged: its pickle cannot be read ({error})") from error


def are_equal(path: Path, one: TensorShape, other: TensorShape) -> bool:
    """Whether two tensors of the file are the same numbers: one storage, or two with the same bytes."""
    if one.storage == other.storage:
        return True
    with zipfile.ZipFile(path) as archive, archive.open(one.storage) as first, archive.open(other.storage) as second:
        while chunk := first.read(_READ_BYTES):
            if chunk != second.read(_READ_BYTES):
                return False
        return not second.read(1)
