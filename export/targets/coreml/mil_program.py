"""A saved ``.mlpackage`` as plain data: what both the graph proof and the evaluator read.

The protocol buffer is read as it is; the converter's own objects, and whatever it still holds in memory, play no part.
Typed values are immediate or in the weight file, which starts every value with a 64-byte record: a sentinel, the type,
the size and where the data begins. Types narrower than a byte are packed, the first element in the lowest bits.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.targets.vendor_packages import coremltools
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
MODEL = Path("Data", "com.apple.CoreML", "model.mlmodel")
NOT_ARGUMENTS = ("name", "val")


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


@dataclass(frozen=True)
class MilOperation:
    """One operation; its arguments are names of values, several for a variadic one such as ``concat``."""

    kind: str
    arguments: dict[str, tuple[str, ...]]
    outputs: tuple[str, ...]
    types: tuple[MilType, ...]

    @property
    def name(self) -> str:
        return self.outputs[0] if self.outputs else f"{self.kind} of {self.arguments.get('input', ('',))[0]}"


@dataclass(frozen=True)
class MilProgram:
    """The ``main`` function: operations in execution order."""

    inputs: dict[str, MilType]
    states: dict[str, MilType]
    outputs: tuple[str, ...]
    constants: dict[str, Any]  # arrays and strings
    operations: tuple[MilOperation, ...]

    def of_kind(self, kind: str) -> list[MilOperation]:
        return [operation for operation in self.operations if operation.kind == kind]


def read_specification(package: Path) -> Any:
    """The package's ``Model`` message; raises RdError where there is none."""
    coremltools()
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    file = package / MODEL
    if not file.is_file():
        raise RdError(f"{package}: not a Core ML package, there is no {MODEL}", hint="export it again")
    model = Model_pb2.Model()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise RdError(f"{file}: not a Core ML model ({error})", hint="export it again") from None
    if model.WhichOneof("Type") != "mlProgram":
        raise RdError(f"{file}: a {model.WhichOneof('Type')}, not an ML program", hint="export it again")
    return model


def read_program(package: Path) -> MilProgram:
    """The program of a saved package; raises RdError for anything that is not one block of operations."""
    function = read_specification(package).mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    weights = package / MODEL.parent / "weights"
    inputs, states, constants = {}, {}, {}
    for port in function.inputs:
        if port.type.WhichOneof("type") == "stateType":
            states[port.name] = read_type(port.type.stateType.wrappedType.tensorType)
        else:
            inputs[port.name] = read_type(port.type.tensorType)
    operations = []
    for message in block.operations:
        if message.blocks:
            raise RdError(f"MIL operation {message.type} has blocks of its own: control flow is not evaluated")
        if message.type == "const":
            constants[message.outputs[0].name] = read_value(message.attributes["val"], weights)
        else:
            operation, inline = _operation(message, weights)
            constants.update(inline)
            operations.append(operation)
    return MilProgram(inputs, states, tuple(block.outputs), constants, tuple(operations))


def _operation(message: Any, weights: Path) -> tuple[MilOperation, dict[str, Any]]:
    """The operation, and the constants that stand in it: arguments, or attributes of older ones."""
    own = message.outputs[0].name if message.outputs else message.type
    inline: dict[str, Any] = {}
    arguments: dict[str, tuple[str, ...]] = {}
    for key, argument in message.inputs.items():
        names = []
        for index, binding in enumerate(argument.arguments):
            if binding.WhichOneof("binding") == "value":
                names.append(f"{own}/{key}/{index}")
                inline[names[-1]] = read_value(binding.value, weights)
            else:
                names.append(binding.name)
        arguments[key] = tuple(names)
    for key, value in message.attributes.items():
        if key not in NOT_ARGUMENTS and value.type.WhichOneof("type") == "tensorType":
            arguments[key] = (f"{own}/{key}",)
            inline[f"{own}/{key}"] = read_value(value, weights)
    types = tuple(read_type(output.type.tensorType) for output in message.outputs)
    return MilOperation(message.type, arguments, tuple(o.name for o in message.outputs), types), inline


def settings(operation: MilOperation, constants: Mapping[str, Any]) -> str:
    """What the operation is told besides its first input; a computed number stands as its name."""
    texts = [(word, name) for word, names in sorted(operation.arguments.items()) for name in names if word != "x"]
    values = [(word, constants.get(name, name)) for word, name in texts]
    return " ".join(f"{word}={value.tolist() if isinstance(value, np.ndarray) else value}" for word, value in values)


def operands(operation: MilOperation) -> list[str]:
    """Its arguments in operand order; the file keeps them in none."""
    first = [key for key in ("x", "y", "values", "input") if key in operation.arguments]
    rest = sorted(key for key in operation.arguments if key not in first)
    return [name for key in [*first, *rest] for name in operation.arguments[key]]
