"""The one reader of ``.npz`` files that somebody else wrote: every header is checked before an array is allocated."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from reuse_distill.runtime.errors import RdError

MOST_BYTES = 128 << 20  # of all arrays together
MOST_MEMBERS = 64
MOST_AXES = 8
KINDS = "fiub"  # floats, integers, booleans: nothing with objects or text in it
ENCRYPTED = 1


def read_npz(path: Path, *, most_bytes: int = MOST_BYTES) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by name.

    Raises RdError for a file that is none, members that are encrypted, doubled or no arrays of numbers, values that
    are not finite, and more than ``most_bytes`` in all.
    """
    hint = "export the bundle again"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MOST_MEMBERS or len({member.filename for member in members}) != len(members):
                raise RdError(f"{path}: {len(members)} members, at most {MOST_MEMBERS} of different names are read")
            arrays, left = {}, most_bytes
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name == member.filename:
                    continue
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # what NumPy writes
                    raise RdError(f"{path}: array {name!r} is compressed by method {member.compress_type}", hint=hint)
                if member.flag_bits & ENCRYPTED:
                    raise RdError(f"{path}: array {name!r} is encrypted", hint=hint)
                with archive.open(member) as stream:
                    arrays[name] = _read_array(stream, left, where=f"{path}: array {name!r}")
                left -= arrays[name].nbytes
            return arrays
    except (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise RdError(f"{path}: cannot be read: {error}", hint=hint) from None


def _read_array(stream: IO[bytes], most_bytes: int, *, where: str) -> np.ndarray:
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise RdError(f"{where}: version {version} of the format, 1.0 and 2.0 are read")
    try:
        shape, by_columns, dtype = readers[version](stream)
    except Exception as error:  # the header is a Python literal, and its tokenizer and parser have errors of their own
        raise RdError(f"{where}: its header makes no sense ({type(error).__name__})") from None
    if dtype.kind not in KINDS or dtype.hasobject or len(shape) > MOST_AXES or any(d < 0 for d in shape):
        raise RdError(f"{where} is {dtype} of shape {shape}: numbers in at most {MOST_AXES} axes are read")
    size_bytes = math.prod(shape) * dtype.itemsize
    if size_bytes > most_bytes:
        raise RdError(f"{where}: {size_bytes} bytes, {most_bytes} more at most are read")
    data = stream.read(size_bytes + 1)
    if len(data) != size_bytes:
        raise RdError(f"{where}: holds {len(data)} bytes or more, its header says {size_bytes}")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise RdError(f"{where} holds a NaN or an infinity")
    return array
