"""Typed values of a MIL program: immediate ones, and those of the weight file beside it.

The weight file starts every value with a 64-byte record: a sentinel, the type, the size and where the data begins.
Types narrower than a byte are packed, the first element in the lowest bits.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.runtime.errors import RdError

SENTINEL = 0xDEADBEEF
RECORD = struct.Struct("<IIQQ")  # sentinel, type, size in bytes, offset of the data
DTYPES = {
    "FLOAT16": "float16",
    "FLOAT32": "float32",
    "FLOAT64": "float64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "BOOL": "bool",
    "STRING": "string",
}
NARROW = {"UINT1": 1, "UINT2": 2, "UINT3": 3, "UINT4": 4, "UINT6": 6, "INT4": -4}  # bits; negative: signed


@dataclass(frozen=True)
class MilType:
    """Element type by its NumPy name (narrow integers as the byte that holds them) and shape; -1 is any length."""

    dtype: str
    shape: tuple[int, ...]
    bits: int = 0  # of packed elements; negative: signed; 0: whole bytes


def read_type(tensor: Any) -> MilType:
    """The type of a ``TensorType`` message."""
    from coremltools.proto import MIL_pb2

    name = MIL_pb2.DataType.Name(tensor.dataType)
    shape = tuple(d.constant.size if d.WhichOneof("dimension") == "constant" else -1 for d in tensor.dimensions)
    if name in NARROW:
        return MilType("int8" if NARROW[name] < 0 else "uint8", shape, NARROW[name])
    if name not in DTYPES:
        raise RdError(f"MIL type {name} is not known", hint="export with --precision fp16")
    return MilType(DTYPES[name], shape)


def read_value(message: Any, weights: Path) -> Any:
    """An array, or a string. ``weights`` is the folder of the weight file."""
    kind = read_type(message.type.tensorType)
    if message.WhichOneof("value") == "blobFileValue":
        blob = message.blobFileValue
        return _shaped(_blob(weights / Path(blob.fileName).name, blob.offset), kind)
    tensor = message.immediateValue.tensor
    field = tensor.WhichOneof("value")
    values = getattr(tensor, field).values if field else b""
    if kind.dtype == "string":
        return str(values[0])
    if field == "bytes":
        return _shaped(values, kind)
    return np.array(values, dtype=kind.dtype).reshape(kind.shape)


def _blob(file: Path, offset: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(offset)
        sentinel, _, size, start = RECORD.unpack(stream.read(RECORD.size))
        if sentinel != SENTINEL:
            raise RdError(f"{file.name}: no value at byte {offset}", hint="the package is damaged; export it again")
        stream.seek(start)
        return stream.read(size)


def _shaped(data: bytes, kind: MilType) -> np.ndarray:
    count = math.prod(kind.shape)
    if kind.bits:
        return unpack(np.frombuffer(data, np.uint8), kind.bits, count).reshape(kind.shape)
    return np.frombuffer(data, kind.dtype, count=count).reshape(kind.shape)


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """``count`` integers of ``bits`` bits each (negative: two's complement), the first in the lowest bits."""
    width = abs(bits)
    stream = np.unpackbits(packed, bitorder="little")[: count * width].reshape(count, width)
    values = (stream << np.arange(width, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    if bits > 0:
        return values
    signed = values.astype(np.int16)
    return np.where(signed >= 1 << (width - 1), signed - (1 << width), signed).astype(np.int8)
