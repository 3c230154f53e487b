"""Reads ``torch.save`` files of any origin without importing or calling anything that they name.

Public speech checkpoints pickle optimiser schedules, dictionaries and argument namespaces of libraries that nobody
has installed, so ``torch.load(weights_only=True)`` refuses them. Here tensors and plain containers are rebuilt, and
every other class becomes an ``Inert`` record that only remembers its name. Nothing from the file is executed.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from reuse_distill.runtime.errors import RdError
from torch import Tensor

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

# Opcodes that no torch checkpoint has: they reach a registry of the process (EXT), call in ways of old Python
# versions, or reserve memory.
_REFUSED = (
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
    pickle.INST,
    pickle.OBJ,
    pickle.BYTEARRAY8,
    pickle.NEXT_BUFFER,
)
# What a damaged record can raise while it is being put together.
_DAMAGE = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,  # includes RecursionError, NotImplementedError and zipfile's "encrypted"
    MemoryError,
    OSError,
)


class Inert:
    """Stands for an object of a class that is not rebuilt: remembers what the file said, does nothing.

    Every name of the file gets a subclass of its own, whose calling (or ``__new__``) only makes such a record.
    """

    source = "unknown"  # module and name as the file has them
    args: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __new__(cls, *args: Any, **_: Any) -> Inert:
        record = super().__new__(cls)
        record.args, record.state, record.items = args, None, []
        return record

    def __init__(self, *args: Any, **_: Any) -> None:
        pass

    def __repr__(self) -> str:
        return f"<inert {self.source}>"

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, value: Any) -> None:
        self.items.append(value)

    def extend(self, values: Any) -> None:
        self.items.extend(values)

    def __hash__(self) -> int:
        return id(self)


class _Plain(dict[Any, Any]):
    """An ordered dictionary; the attributes that torch hangs on state dicts (``_metadata``) are dropped."""


def read_torch_file(path: str | os.PathLike[str]) -> Any:
    """The object that ``torch.save`` wrote to ``path``: tensors, containers, numbers, strings and ``Inert`` records.

    Tensors that shared a storage still do. Raises RdError when the file is missing, truncated, or not a
    ``torch.save`` archive.
    """
    file = Path(path)
    if not file.is_file():
        raise RdError(f"{file}: no such checkpoint file")
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive)
    except zipfile.BadZipFile:
        raise RdError(
            f"{file}: not a torch checkpoint archive, or cut short ({file.stat().st_size} bytes)",
            hint="download or copy the file again; files older than torch 1.6 have to be saved anew",
        ) from None
    except RdError as error:
        raise RdError(f"{file}: {error.message}", hint=error.hint) from None
    except _DAMAGE as error:
        raise RdError(f"{file}: damaged checkpoint ({error})", hint="download or copy the file again") from None


def _read_archive(archive: zipfile.ZipFile) -> Any:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise RdError(f"{len(pickles)} data.pkl records in the archive, a torch checkpoint has 1")
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise RdError("the archive is compressed, torch.save writes plain records")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in archive.namelist() and archive.read(f"{prefix}byteorder") != b"little":
        raise RdError("the checkpoint is big-endian, only little-endian ones are read")
    return _Unpickler(archive, prefix).load()


class _Storage:
    """A storage record of the archive, as the pickle refers to it."""

    def __init__(self, data: Tensor) -> None:
        self.data = data


class _Unpickler(pickle._Unpickler):
    """The interpreter's own unpickler in Python: from this one opcodes can be taken away."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{prefix}data.pkl")))
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, _Storage] = {}

    def load_build(self) -> None:
        """Attributes reach inert records only, never a tensor, a class or a function of this module."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, _Plain):
            raise pickle.UnpicklingError(f"it sets attributes of {type(target).__name__}")

    def load_refused(self) -> None:
        raise pickle.UnpicklingError("it has an operation that no torch checkpoint needs")

    dispatch[pickle.BUILD[0]] = load_build
    for _opcode in _REFUSED:
        dispatch[_opcode[0]] = load_refused

    def find_class(self, module: str, name: str) -> Any:
        """Never imports: four names have a meaning here, all others are inert."""
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): _Plain,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch", "Size"): tuple,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        return type("Inert", (Inert,), {"source": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"unknown storage {pid!r:.80}")
        if key not in self._storages:
            raw = self._archive.read(f"{self._prefix}data/{key}")
            if len(raw) != count * dtype.itemsize:
                raise RdError(
                    f"storage {key} has {len(raw)} bytes, {count} values of {dtype} need {count * dtype.itemsize}"
                )
            data = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            self._storages[key] = _Storage(data)
        return self._storages[key]


def _tensor(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A view of the storage: a size that lies cannot make it reserve memory."""
    try:
        return torch.as_strided(storage.data, tuple(size), tuple(stride), offset)
    except RuntimeError as error:
        raise RdError(f"a tensor of shape {tuple(size)} does not fit its storage ({error})") from None


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data
