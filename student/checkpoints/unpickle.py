"""Reads ``torch.save`` files of any origin without importing or calling anything that they name.

Public speech checkpoints pickle optimiser schedules, dictionaries and argument namespaces of libraries that nobody
has installed, so ``torch.load(weights_only=True)`` refuses them. Here tensors and plain containers are rebuilt, and
every other class becomes an ``Inert`` record that only remembers its name. Nothing from the file is executed.

Work and memory are bounded by the size of the file. What a pickle can share (a list in a list in a list, each twice)
is exponentially large to whoever walks it, so no value of the file is printed, compared or hashed but plain ones; and
tensors may not be larger than what they are made of.
"""

from __future__ import annotations

import io
import math
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
_KEPT_ARGUMENTS = 16  # of an inert call
_MOST_CLASSES = 4096  # each takes a kilobyte, its name in the file three bytes
_MOST_AXES = 16
_SMALL_TENSOR = 1 << 16  # values that may be repeated ones (stride 0)
_REPEATED = 1 << 20  # of all such tensors
_MOST_VIEWS = 8  # values of all tensors for each value of the storages: a tied parameter counts four times
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
        # Each call would copy a list of any length that the file has once.
        record.args, record.state, record.items = args if len(args) <= _KEPT_ARGUMENTS else (), None, []
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


class _OrderedRecord(dict[Any, Any]):
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
            hint="download or copy the file again; files older than torch 1.6 have to be saved again",
        ) from None
    except RdError as error:
        raise RdError(f"{file}: {error.message}", hint=error.hint) from None
    except _DAMAGE as error:
        what = str(error)[:200] if not isinstance(error, LookupError) else type(error).__name__
        raise RdError(f"{file}: damaged checkpoint ({what})", hint="download or copy the file again") from None


def _read_archive(archive: zipfile.ZipFile) -> Any:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise RdError(f"{len(pickles)} data.pkl records in the archive, a torch checkpoint has 1")
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise RdError("the archive is compressed, torch.save writes plain records")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in archive.namelist() and archive.read(f"{prefix}byteorder") != b"little":
        raise RdError("the checkpoint is big-endian, only little-endian ones are read")
    unpickler = _Unpickler(archive, prefix)
    data = unpickler.load()
    unpickler.check_sizes()
    return data


class _Storage:
    """A storage record of the archive, as the pickle refers to it."""

    def __init__(self, data: Tensor) -> None:
        self.data = data


class _Unpickler(pickle._Unpickler):
    """The interpreter's own unpickler in Python: from this one opcodes can be taken away."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]  # the interpreter's; typeshed does not know it

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{prefix}data.pkl")))
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, _Storage] = {}
        self._classes: dict[tuple[str, str], type[Inert]] = {}
        self._elements = 0  # of all tensors
        self._unread_bytes = Path(str(archive.filename)).stat().st_size

    def check_sizes(self) -> None:
        """Raises RdError where the tensors together are far larger than the storages that they are made of."""
        stored = sum(storage.data.numel() for storage in self._storages.values())
        if self._elements > _MOST_VIEWS * stored + _REPEATED:
            raise RdError(f"tensors of {self._elements} values in all are made of {stored} stored values")

    def load_build(self) -> None:
        """Attributes reach inert records only, never a tensor, a class or a function of this module."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, _OrderedRecord):
            raise pickle.UnpicklingError(f"it sets attributes of {type(target).__name__}")

    def load_reduce(self) -> None:
        super().load_reduce()  # type: ignore[misc]
        if isinstance(self.stack[-1], Tensor):
            self._elements += self.stack[-1].numel()

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        pairs = self.pop_mark()
        self._set(self.stack[-1], pairs)

    def load_dict(self) -> None:
        pairs = self.pop_mark()
        made: dict[Any, Any] = {}
        self._set(made, pairs)
        self.append(made)

    def load_additems(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if not isinstance(target, (set, Inert)):
            raise pickle.UnpicklingError(f"it adds items to {type(target).__name__}")
        for item in items:
            target.add(_plain(item)) if isinstance(target, set) else target.append(item)

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(_plain(item) for item in items))

    def load_append(self) -> None:
        value = self.stack.pop()
        self._extend(self.stack[-1], [value])

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._extend(self.stack[-1], items)

    @staticmethod
    def _set(target: Any, pairs: list[Any]) -> None:
        if not isinstance(target, (dict, Inert)):
            raise pickle.UnpicklingError(f"it sets items of {type(target).__name__}")
        if len(pairs) % 2:
            raise pickle.UnpicklingError("a key without a value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[_plain(key)] = value

    @staticmethod
    def _extend(target: Any, items: list[Any]) -> None:
        if not isinstance(target, (list, Inert)):
            raise pickle.UnpicklingError(f"it appends to {type(target).__name__}")
        target.extend(items)

    def load_refused(self) -> None:
        raise pickle.UnpicklingError("it has an operation that no torch checkpoint needs")

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset
    dispatch[pickle.APPEND[0]] = load_append
    dispatch[pickle.APPENDS[0]] = load_appends
    for _opcode in _REFUSED:
        dispatch[_opcode[0]] = load_refused

    def find_class(self, module: str, name: str) -> Any:
        """Never imports: four names have a meaning here, all others are inert."""
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): _ordered,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch", "Size"): _sizes,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if (module, name) not in self._classes:
            if len(self._classes) == _MOST_CLASSES:
                raise pickle.UnpicklingError(f"it names more than {_MOST_CLASSES} classes")
            self._classes[module, name] = type("Inert", (Inert,), {"source": f"{module}.{name}"})
        return self._classes[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _location, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"unknown storage, a {type(kind).__name__} of {type(dtype).__name__}")
        if not isinstance(key, str) or type(count) is not int:
            raise pickle.UnpicklingError(
                f"a storage is named by {type(key).__name__}, of {type(count).__name__} values"
            )
        if key not in self._storages:
            name = f"{self._prefix}data/{key}"
            self._unread_bytes -= self._archive.getinfo(name).file_size
            if self._unread_bytes < 0:  # records that lie over each other
                raise RdError("the storages together are larger than the file")
            raw = self._archive.read(name)
            if len(raw) != count * dtype.itemsize:
                raise RdError(
                    f"storage {key} has {len(raw)} bytes, {count} values of {dtype} need {count * dtype.itemsize}"
                )
            data = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            self._storages[key] = _Storage(data)
        return self._storages[key]


def _tensor(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """A view of the storage: a size that lies cannot make it reserve memory, now or when it is copied."""
    size, stride = _sizes(size), _sizes(stride)
    if not isinstance(storage, _Storage) or type(offset) is not int:
        raise pickle.UnpicklingError("a tensor without a storage")
    if math.prod(size) > max(storage.data.numel(), _SMALL_TENSOR):
        raise RdError(
            f"a tensor of shape {size} does not fit its storage of {storage.data.numel()} values",
            hint=f"more than {_SMALL_TENSOR} repeated values (stride 0) are not read: save a contiguous copy",
        )
    try:
        return torch.as_strided(storage.data, size, stride, offset)
    except RuntimeError as error:
        raise RdError(f"a tensor of shape {size} does not fit its storage ({error})") from None


def _plain(key: Any) -> Any:
    """A key of a dictionary or an item of a set: what hashes at once, which a tuple of tuples of tuples does not."""
    parts = key if type(key) is tuple and len(key) <= _KEPT_ARGUMENTS else (key,)
    kinds = (str, bytes, int, float, complex, torch.dtype, Inert, type)
    if not all(part is None or isinstance(part, kinds) for part in parts):
        raise pickle.UnpicklingError(f"a key of type {type(key).__name__}")
    return key


def _ordered(*arguments: Any) -> _OrderedRecord:
    """An empty dictionary, which the file fills; what it is called with would be copied by every call."""
    if arguments:
        raise pickle.UnpicklingError("an OrderedDict with arguments")
    return _OrderedRecord()


def _sizes(value: Any) -> tuple[int, ...]:
    """The axes of a tensor."""
    if not isinstance(value, (tuple, list)) or len(value) > _MOST_AXES:
        raise pickle.UnpicklingError(f"sizes of a tensor are {type(value).__name__}, not up to {_MOST_AXES} numbers")
    if not all(type(n) is int and n.bit_length() < 63 for n in value):
        raise RdError("a tensor with a size that is no number below 2**63 does not fit its storage")
    return tuple(value)


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data
