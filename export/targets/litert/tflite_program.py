"""A ``.tflite`` file as plain data: its operations in execution order, and what its constants and tensors are.

Read by the schema's own classes, which check nothing: sizes are held against the file's before anything is made of
them, and a file whose offsets lead nowhere is an error like any other.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.runtime.engines.litert_backend import IDENTIFIER, load_litert
from reuse_distill.runtime.errors import RdError

MOST_BYTES = 2 << 30  # what offsets of 32 bits reach
MOST_ITEMS = 1_000_000  # operations, tensors or buffers of one file
_MOST_NUMBERS = 16  # of a constant that is read: shapes, permutations, positions
_INTEGERS = {2: "<i4", 4: "<i8"}  # TensorType of INT32 and INT64


@dataclass(frozen=True)
class TflTensor:
    """One tensor; ``scale`` is what its integers stand for, empty where they stand for themselves."""

    name: str
    shape: tuple[int, ...]
    constant: bool
    numbers: tuple[int, ...] | None = None  # the values of a constant that holds a few integers
    scale: tuple[float, ...] = ()
    zero_point: tuple[int, ...] = ()

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class TflOperation:
    """One operation; ``inputs`` and ``outputs`` are numbers of tensors, -1 where an optional one is left out."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    settings: tuple[tuple[str, Any], ...] = ()  # options that change what it computes or moves


@dataclass(frozen=True)
class TflProgram:
    """The one graph of a file."""

    tensors: tuple[TflTensor, ...]
    operations: tuple[TflOperation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    buffers: dict[int, tuple[int, int]] = field(default_factory=dict)  # constant -> (offset, bytes) in the file


def read_tflite(file: Path) -> TflProgram:
    """The graph of ``file``. Raises RdError for what is none, is damaged, or holds more than one graph."""
    load_litert()
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise RdError(f"{file}: {size} bytes, a .tflite has at most {MOST_BYTES}")
    data = file.read_bytes()
    if data[4:8] != IDENTIFIER:
        raise RdError(f"{file}: not a LiteRT model: it does not begin as a .tflite does", hint="export it again")
    try:
        return _program(data)
    except (struct.error, IndexError, TypeError, ValueError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise RdError(f"{file}: damaged: {type(error).__name__}: {error}", hint="export the bundle again") from None


def _program(data: bytes) -> TflProgram:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(data, 0)
    if model.SubgraphsLength() != 1:
        raise ValueError(f"{model.SubgraphsLength()} graphs, one is expected")
    graph = model.Subgraphs(0)
    for count in (graph.OperatorsLength(), graph.TensorsLength(), model.BuffersLength(), model.OperatorCodesLength()):
        if count > min(MOST_ITEMS, len(data)):
            raise ValueError(f"{count} entries in {len(data)} bytes")
    spans = [_span(model.Buffers(i), data) for i in range(model.BuffersLength())]
    tensors, buffers = [], {}
    for index in range(graph.TensorsLength()):
        tensor, span = _tensor(graph.Tensors(index), spans, data)
        tensors.append(tensor)
        if span is not None:
            buffers[index] = span
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    codes = [_code(model.OperatorCodes(i), names) for i in range(model.OperatorCodesLength())]
    operations = [_operation(graph.Operators(i), codes, len(tensors), schema) for i in range(graph.OperatorsLength())]
    ends = [tuple(_numbers(graph, name, len(tensors))) for name in ("Inputs", "Outputs")]
    return TflProgram(tuple(tensors), tuple(operations), ends[0], ends[1], buffers)


def _span(buffer: Any, data: bytes) -> tuple[int, int]:
    """(offset in the file, bytes) of a buffer; 0 bytes where a tensor is computed."""
    if buffer.Offset():  # outside of the flatbuffer itself, where a file is large
        start, length = int(buffer.Offset()), int(buffer.Size())
    else:
        length = int(buffer.DataLength())
        start = int(buffer._tab.Vector(buffer._tab.Offset(4))) if length else 0
    if length and not (0 < start <= len(data) - length):
        raise ValueError(f"a buffer of {length} bytes at {start} in {len(data)} bytes")
    return start, length


def _tensor(one: Any, spans: list[tuple[int, int]], data: bytes) -> tuple[TflTensor, tuple[int, int] | None]:
    shape = tuple(int(one.Shape(i)) for i in range(_least(one.ShapeLength(), 16)))
    start, length = spans[one.Buffer()]
    numbers, kind = None, _INTEGERS.get(one.Type())
    if length and kind is not None and length // int(kind[2]) <= _MOST_NUMBERS:
        numbers = tuple(int(n) for n in np.frombuffer(data, kind, length // int(kind[2]), start))
    quantisation = one.Quantization()
    scale: tuple[float, ...] = ()
    zero: tuple[int, ...] = ()
    if quantisation is not None and quantisation.ScaleLength():
        _least(quantisation.ScaleLength(), len(data))
        scale = tuple(np.atleast_1d(quantisation.ScaleAsNumpy()).astype(float).tolist())
        if quantisation.ZeroPointLength():
            _least(quantisation.ZeroPointLength(), len(data))
            zero = tuple(np.atleast_1d(quantisation.ZeroPointAsNumpy()).astype(int).tolist())
    name = (one.Name() or b"").decode()
    return TflTensor(name, shape, bool(length), numbers, scale, zero), (start, length) if length else None


def _least(count: int, most: int) -> int:
    if count > most:
        raise ValueError(f"{count} entries, at most {most} are expected")
    return count


def _code(one: Any, names: dict[int, str]) -> str:
    number = max(one.BuiltinCode(), one.DeprecatedBuiltinCode())
    if names.get(number) in ("CUSTOM", "STABLEHLO_CUSTOM_CALL"):
        return f"CUSTOM {(one.CustomCode() or b'').decode()}"
    return names.get(number, f"operation {number}")


def _numbers(owner: Any, name: str, tensors: int) -> Iterator[int]:
    count = _least(getattr(owner, f"{name}Length")(), tensors + 16)
    for i in range(count):
        number = int(getattr(owner, name)(i))
        if not -1 <= number < tensors:
            raise ValueError(f"tensor {number} of {tensors}")
        yield number


# Options that change what an operation computes: their class, and the fields that count.
_OPTIONS = {
    "SOFTMAX": ("SoftmaxOptions", ("Beta",)),
    "BATCH_MATMUL": ("BatchMatMulOptions", ("AdjX", "AdjY")),
    "FULLY_CONNECTED": ("FullyConnectedOptions", ("FusedActivationFunction",)),
    "ADD": ("AddOptions", ("FusedActivationFunction",)),
    "MUL": ("MulOptions", ("FusedActivationFunction",)),
    "DIV": ("DivOptions", ("FusedActivationFunction",)),
    "CONCATENATION": ("ConcatenationOptions", ("Axis", "FusedActivationFunction")),
    "SPLIT": ("SplitOptions", ("NumSplits",)),
    "STRIDED_SLICE": (
        "StridedSliceOptions",
        ("BeginMask", "EndMask", "EllipsisMask", "NewAxisMask", "ShrinkAxisMask"),
    ),
}


def _operation(one: Any, codes: list[str], tensors: int, schema: Any) -> TflOperation:
    kind = codes[one.OpcodeIndex()]
    inputs, outputs = (tuple(_numbers(one, name, tensors)) for name in ("Inputs", "Outputs"))
    settings: list[tuple[str, Any]] = []
    options = one.BuiltinOptions()
    if kind in _OPTIONS and options is not None:
        name, fields = _OPTIONS[kind]
        table = getattr(schema, name)()
        table.Init(options.Bytes, options.Pos)
        settings = [(field, getattr(table, field)()) for field in fields]
    return TflOperation(kind, inputs, outputs, tuple(settings))
