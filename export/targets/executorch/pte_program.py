"""A finished ``.pte`` as a list of operations: what runs on portable kernels, and what is inside its delegates.

Everything comes from the file: ExecuTorch's own reader gives the program, and the delegates' payloads are read with
XNNPACK's flatbuffer schema as the package ships it, or as the Core ML package that they are.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.targets.coreml.mil_program import operands as mil_operands
from reuse_distill.export.targets.coreml.mil_program import settings
from reuse_distill.export.targets.executorch.coreml_payload import Package, read_package
from reuse_distill.export.targets.executorch.delegates import load
from reuse_distill.export.targets.vendor_packages import telling
from reuse_distill.runtime.errors import RdError

PORTABLE = "portable"
XNNPACK = "XnnpackBackend"
COREML = "CoreMLBackend"
SCHEMAS = ("schema.fbs", "runtime_schema.fbs")  # of what today's converter writes, and of what a runtime rewrites


@dataclass(frozen=True)
class Constant:
    """A tensor that the file holds."""

    elements: int
    kind: str  # its element type, by the file's own name


@dataclass(frozen=True)
class PteOperation:
    """One operation, wherever it runs. Values are named alike inside and outside of delegates."""

    name: str
    kind: str  # the file's own name: aten::native_layer_norm, XNNSoftmax, …
    place: str  # portable, or the delegate's name
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: str = ""  # what it is told besides its tensors; a computed number stands as its name


@dataclass(frozen=True)
class PteProgram:
    """All operations of the method ``forward`` in execution order."""

    operations: tuple[PteOperation, ...]
    constants: dict[str, Constant]
    delegates: tuple[str, ...]  # one name per delegate, in the order they are called
    inputs: tuple[tuple[int, ...], ...]  # sizes, free axes at their largest


def read_program(file: Path) -> PteProgram:
    """Read a finished program; raises RdError where ExecuTorch's own reader does not take it, or nothing a payload."""
    return _Reader(*deserialised(file)).read()


def deserialised(file: Path) -> tuple[Any, Any]:
    """(program, its plan of the method ``forward``) as ExecuTorch's own reader gives them."""
    reader = load("executorch.exir._serialize._program")
    with telling(f"{file.name}: ExecuTorch cannot read it"):
        program = reader.deserialize_pte_binary(file.read_bytes()).program
    return program, next(p for p in program.execution_plan if p.name == "forward")


def payload(program: Any, delegate: Any) -> bytes:
    """What a delegate of the plan was given, as it lies in the file."""
    return bytes(program.backend_delegate_data[delegate.processed.index].data)


class _Reader:
    """Walks the instructions of one plan."""

    def __init__(self, program: Any, plan: Any) -> None:
        self.program, self.plan = program, plan
        self.constants: dict[str, Constant] = {}
        self.produced = {f"v{index}" for index in plan.inputs}
        calls = [i.instr_args for chain in plan.chains for i in chain.instructions]
        self.computed = {call.args[-1] for call in calls if type(call).__name__ == "KernelCall"}  # not there beforehand
        self.placed: dict[tuple[int, ...], str] = {}  # place in the working memory -> what was last written there
        self.delegates: list[str] = []

    def read(self) -> PteProgram:
        operations = []
        for number, instruction in enumerate(i for chain in self.plan.chains for i in chain.instructions):
            call = instruction.instr_args
            if type(call).__name__ == "DelegateCall":
                operations += list(self._delegate(number, call))
            elif type(call).__name__ == "KernelCall":
                operations.append(self._kernel(number, call))
        sizes = tuple(tuple(self.plan.values[index].val.sizes) for index in self.plan.inputs)
        return PteProgram(tuple(operations), self.constants, tuple(self.delegates), sizes)

    def _kernel(self, number: int, call: Any) -> PteOperation:
        """Its last argument is what it returns: a tensor that it writes to, or the list of them."""
        outputs = self._tensors(call.args[-1])
        others = [name for index in call.args[:-1] for name in self._tensors(index)]
        inputs = tuple(self._source(name) for name in dict.fromkeys(others) if name not in outputs)
        for name in outputs:
            self._write(name)
        operator = self.plan.operators[call.op_index]
        text = " ".join(figure for index in call.args[:-1] if (figure := self._number(index)))
        return PteOperation(f"{operator.name}@{number}", operator.name, PORTABLE, inputs, tuple(outputs), text)

    def _number(self, index: int) -> str:
        """An argument that is an integer or a list of them; empty for any other."""
        value = self.plan.values[index].val
        kind = type(value).__name__
        if kind == "Int":
            return f"v{index}" if index in self.computed else str(value.int_val)
        return f"[{', '.join(map(self._number, value.items))}]" if kind == "IntList" else ""

    def _write(self, name: str) -> None:
        self.produced.add(name)
        if (place := self._place(name)) is not None:
            self.placed[place] = name

    def _source(self, name: str) -> str:
        """What is read as ``name``: a view that costs nothing has no instruction, only the place of its source."""
        if name in self.produced or name in self.constants:
            return name
        place = self._place(name)
        return name if place is None else self.placed.get(place, name)

    def _place(self, name: str) -> tuple[int, ...] | None:
        details = self.plan.values[int(name[1:])].val.allocation_info
        if details is None:
            return None
        return (details.memory_id, details.memory_offset_high, details.memory_offset_low)

    def _tensors(self, index: int) -> list[str]:
        """The tensors that argument ``index`` is or holds; notes the constant ones."""
        value = self.plan.values[index].val
        if hasattr(value, "items") and type(value).__name__ in ("TensorList", "OptionalTensorList"):
            return [name for item in value.items for name in self._tensors(item) if item >= 0]
        if type(value).__name__ != "Tensor":
            return []
        name = f"v{index}"
        if value.data_buffer_idx or value.extra_tensor_info is not None:
            self.constants[name] = Constant(math.prod(value.sizes), value.scalar_type.name.lower())
        return [name]

    def _delegate(self, number: int, call: Any) -> Iterator[PteOperation]:
        delegate = self.plan.delegates[call.delegate_index]
        self.delegates.append(delegate.id)
        if delegate.id == COREML:
            yield from self._package(number, call, payload(self.program, delegate))
            return
        if delegate.id != XNNPACK:
            raise RdError(
                f"the payload of delegate {delegate.id} cannot be read, so its graph cannot be proven",
                hint="export with --delegate xnnpack",
            )
        graph = read_payload(payload(self.program, delegate))
        names = self._names(number, call, graph)
        for index, node in enumerate(graph["xnodes"]):
            kind, fields = node["xnode_union_type"], node["xnode_union"]
            inputs = [names[i] for i in operands(fields) if i in names]
            outputs = [names[i] for key, i in fields.items() if _is_output(key)]
            for name in outputs:
                if name.startswith("v"):
                    self._write(name)
            text = " ".join(f"{key}={value}" for key, value in fields.items() if _is_setting(key))
            yield PteOperation(f"{kind}@{number}.{index}", kind, delegate.id, tuple(inputs), tuple(outputs), text)

    def _package(self, number: int, call: Any, blob: bytes) -> Iterator[PteOperation]:
        """The operations of a Core ML package; its ports are the call's arguments, inputs first."""
        package = read_package(blob)
        bound = bind(package, call)
        names = {name: self._source(f"v{index}") for name, index in bound.items() if name in package.inputs}
        written = {name: f"v{index}" for name, index in bound.items() if name in package.outputs}
        names |= written
        for name, value in package.program.constants.items():
            size, kind = (value.size, str(value.dtype)) if isinstance(value, np.ndarray) else (0, "string")
            self.constants[f"d{number}.{name}"] = Constant(size, kind)
        for operation in package.program.operations:
            inputs = tuple(names.get(name, f"d{number}.{name}") for name in mil_operands(operation))
            outputs = tuple(names.get(name, f"d{number}.{name}") for name in operation.outputs)
            text = settings(operation, package.program.constants)
            yield PteOperation(f"{operation.name}@{number}", operation.kind, COREML, inputs, outputs, text)
        for name in written.values():
            self._write(name)

    def _names(self, number: int, call: Any, graph: dict[str, Any]) -> dict[int, str]:
        """Id inside the delegate -> name; an external value is the argument of that number."""
        names = {}
        for entry in graph["xvalues"]:
            value = entry["xvalue_union"].get("tensor_value", entry["xvalue_union"])
            name = f"d{number}.{value['id_out']}"
            if value["flags"] & 3:  # 1: input of the delegate, 2: output
                name = f"v{call.args[value['external_id']]}"
                name = self._source(name) if value["flags"] & 1 else name
            names[value["id_out"]] = name
            if value["constant_buffer_idx"]:
                kind = value["datatype"].removeprefix("xnn_datatype_")
                self.constants[name] = Constant(math.prod(value["dims"]), kind)
        return names


def bind(package: Package, call: Any) -> dict[str, int]:
    """Port of the package -> the plan's number of the value; raises RdError where the call has others."""
    ports = (*package.inputs, *package.outputs)
    if len(call.args) != len(ports):
        raise RdError(
            f"Core ML's package has {len(ports)} inputs and outputs, the program hands it {len(call.args)}",
            hint="export the bundle again",
        )
    return dict(zip(ports, call.args, strict=True))


def operands(fields: dict[str, Any]) -> list[int]:
    """Ids of a node's inputs, in operand order."""
    return [value for key, value in fields.items() if key.endswith("_id") and not _is_output(key)]


def _is_output(key: str) -> bool:
    return key in ("output_id", "output_value_id", "output_index_id")


def _is_setting(key: str) -> bool:
    return key != "num_dims" and not key.endswith("_id")


def read_payload(blob: bytes) -> dict[str, Any]:
    """XNNPACK's graph of one delegate, as its schema names things."""
    serialisation = load("executorch.backends.xnnpack.serialization.xnnpack_graph_serialize")
    flatbuffer = load("executorch.exir._serialize._flatbuffer")
    header_type = serialisation.XNNHeader
    header = header_type.from_bytes(bytes(blob[: header_type.EXPECTED_LENGTH]))
    payload = bytes(blob[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size])
    schema = _schema(Path(serialisation.__file__).parent, payload[4:8].decode("ascii", "replace"))
    with tempfile.TemporaryDirectory(prefix="rd-export-") as folder:
        (Path(folder) / "graph.bin").write_bytes(payload)
        with telling("XNNPACK's payload cannot be read"):
            flatbuffer._flatc_decompile(folder, str(schema), str(Path(folder) / "graph.bin"))
        text = (Path(folder) / "graph.json").read_text()
    graph: dict[str, Any] = json.loads(re.sub(r"(?<=: )-?(?:inf|nan)\b", "null", text))  # bounds of a clamp
    return graph


def _schema(folder: Path, identifier: str) -> Path:
    for name in SCHEMAS:
        if f'file_identifier "{identifier}"' in (folder / name).read_text():
            return folder / name
    raise RdError(f"a delegate's payload is of kind {identifier!r}, which the installed ExecuTorch has no schema for")
