"""Says without a GPU whether a JetPack's TensorRT will read an ONNX file and run it at the requested precision.

Every rule names its source. A finding is a reason why not; no finding means that no documented rule is broken, not that
an engine has been built. Sources of what each JetPack reads and runs: versions and API, NVIDIA's JetPack and TensorRT
release notes; opsets and operators, ONNX-TensorRT ``docs/operators.md`` of each release and its changelog; typing and
flags, "Removed Python APIs and Replacements" (TensorRT 10.x to 11.x) and the Python bindings of each release; JetPack
7.2.2, "Migrating TensorRT from 10.x to 11.x on Jetson/JetPack" of 11.4.1 (Jetson AGX Orin and Thor only).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.devices.device_profiles import find_profile
from reuse_distill.runtime.errors import RdError, nearest

# Never read by any release: quantised results in one operator, and quantisation at run time.
NEVER = frozenset(
    ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear", "StringConcat")
)


@dataclass(frozen=True)
class JetPack:
    """One row of the table."""

    name: str
    tensorrt: str
    opset: int  # highest that the parser is documented to read
    lacks: frozenset[str]  # operators that students' graphs may have and this parser does not read
    weak: bool  # builder flags choose precisions
    strong: bool  # the graph does
    bf16: bool

    @property
    def typing(self) -> str:
        """The mode that a bundle is built in there."""
        return "strong" if self.strong else "weak"


_OLD = frozenset({"Gelu", "GroupNormalization", "LayerNormalization"})
JETPACKS = {
    row.name: row
    for row in (
        JetPack("5.1", "8.5.2", 17, _OLD, weak=True, strong=False, bf16=False),
        JetPack("6.0", "8.6.2", 17, frozenset({"Gelu"}), weak=True, strong=False, bf16=False),
        JetPack("6.1", "10.3", 20, frozenset(), weak=True, strong=True, bf16=True),
        JetPack("6.2", "10.3", 20, frozenset(), weak=True, strong=True, bf16=True),
        # The parser of 10.13 and 10.16 may read more than opset 20: not looked up, students do not need more.
        JetPack("thor", "10.13", 20, frozenset(), weak=True, strong=True, bf16=True),
        JetPack("7.2", "10.16", 20, frozenset(), weak=True, strong=True, bf16=True),
        JetPack("7.2.2", "11.4", 25, frozenset(), weak=False, strong=True, bf16=True),
    )
}


def find_jetpack(name: str) -> JetPack:
    """The row called ``name`` (``6.2``, ``thor``, ``7.2.2``). Raises RdError with the nearest name."""
    key = name.lower().removesuffix("+")
    if key not in JETPACKS:
        raise RdError(f"JetPack {name!r} is not in the table", hint=nearest(key, list(JETPACKS)))
    return JETPACKS[key]


def of_device(name: str) -> list[JetPack]:
    """The rows whose TensorRT the device profile ``name`` lists. Raises RdError where it lists none."""
    profile = find_profile(name)
    versions = {v for system in profile.systems for v in re.findall(r"(?:TensorRT|,) (\d+\.\d+(?:\.\d+)?)", system)}
    matching = [row for row in JETPACKS.values() if row.tensorrt in versions]
    if not matching:
        raise RdError(f"device {name} runs no TensorRT that is in the table", hint=f"known: {', '.join(JETPACKS)}")
    return matching


_QDQ = ("QuantizeLinear", "DequantizeLinear")
_PRODUCTS = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True)
class Finding:
    """One reason why a graph will not do what was requested."""

    rule: str
    node: str  # where, or empty for the file
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}" + (f" ({self.node})" if self.node else "")


class Graph:
    """An ONNX model with the look-ups that the rules need."""

    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, model.graph
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.producer = {name: node for node in self.graph.node for name in node.output}
        self.types = _types(model)

    def of(self, *ops: str) -> list[Any]:
        return [node for node in self.graph.node if node.op_type in ops]

    def constant(self, name: str) -> np.ndarray | None:
        """The value of an initializer or a Constant node."""
        from onnx import numpy_helper

        if name in self.constants:
            return numpy_helper.to_array(self.constants[name])
        node = self.producer.get(name)
        if node is not None and node.op_type == "Constant":
            values = [numpy_helper.to_array(a.t) for a in node.attribute if a.name == "value"]
            return values[0] if values else None
        return None

    def is_constant(self, name: str) -> bool:
        """Whether a value is computed from constants alone."""
        if name in self.constants:
            return True
        node = self.producer.get(name)
        return node is not None and all(self.is_constant(i) for i in node.input if i)

    def dequantised(self, name: str) -> bool:
        """Whether a value comes out of a DequantizeLinear, past layout."""
        node = self.producer.get(name)
        while node is not None and node.op_type in ("Transpose", "Reshape", "Unsqueeze", "Squeeze"):
            node = self.producer.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"


def check_file(file: Path, jetpack: JetPack, precision: str) -> list[Finding]:
    """Every reason why ``file`` will not be read, or not run at ``precision``, on ``jetpack``.

    Raises RdError where the file is not ONNX.
    """
    import onnx

    try:
        model = onnx.load(str(file))
    except Exception as error:
        raise RdError(f"{file}: cannot be read as ONNX: {str(error).splitlines()[0]}") from None
    return check_model(model, jetpack, precision)


def check_model(model: Any, jetpack: JetPack, precision: str) -> list[Finding]:
    """See ``check_file``."""
    graph = Graph(model)
    return [finding for rule in RULES for finding in rule(graph, jetpack, precision)]


Rule = Callable[[Graph, JetPack, str], Iterator[Finding]]


def operators(graph: Graph, jetpack: JetPack, precision: str) -> Iterator[Finding]:
    """ONNX-TensorRT docs/operators.md of each release."""
    if graph.opset > jetpack.opset:
        yield Finding("opset", "", f"{graph.opset}; TensorRT {jetpack.tensorrt} reads up to {jetpack.opset}")
    for node in graph.graph.node:
        if node.domain not in ("", "ai.onnx"):
            yield Finding("operator", node.name, f"{node.domain}.{node.op_type} is not an ONNX operator")
        elif node.op_type in jetpack.lacks | NEVER:
            yield Finding("operator", node.name, f"TensorRT {jetpack.tensorrt} does not read {node.op_type}")


def constant_inputs(graph: Graph, jetpack: JetPack, precision: str) -> Iterator[Finding]:
    """operators.md, column "Restrictions": axes have to be known when the graph is read."""
    for node in graph.of("Slice", "Pad", "ReduceMean", "ReduceSum", "Unsqueeze", "Squeeze"):
        index = {"Slice": 3, "Pad": 3}.get(node.op_type, 1)
        if len(node.input) > index and node.input[index] and not graph.is_constant(node.input[index]):
            yield Finding("constant axes", node.name, f"the axes of {node.op_type} are computed")
    if jetpack.tensorrt.startswith("8.5"):  # operators.md of 8.5: scale and bias must be initializers
        for node in graph.of("InstanceNormalization"):
            if any(name not in graph.constants for name in node.input[1:]):
                yield Finding("constant scale", node.name, "InstanceNormalization needs constant scale and bias")


def symmetry(graph: Graph, jetpack: JetPack, precision: str) -> Iterator[Finding]:
    """operators.md: zero points must be 0; the parser refuses uint8 ("Check that QuantizeLinear is not UINT8 type").

    Newer parsers (seen: TensorRT for RTX 1.7) take uint8 with zero point 0 for int8 with a warning: half is lost.
    """
    for node in graph.of(*_QDQ):
        scale = graph.constant(node.input[1])
        if scale is None:
            yield Finding("scale", node.name, f"the scale of {node.op_type} is computed")
        elif scale.dtype == np.float16 and graph.opset < 19:
            yield Finding("scale", node.name, "half scales exist from opset 19 on")
        elif scale.size > 1 and not graph.is_constant(node.input[0]):
            yield Finding("per tensor", node.name, f"{scale.size} scales for an activation; one is possible")
        if len(node.input) < 3:
            yield Finding("symmetry", node.name, "without a zero point the type is uint8")
            continue
        zero = graph.constant(node.input[2])
        if zero is None or zero.dtype != np.int8:
            kind = "computed" if zero is None else zero.dtype.name
            yield Finding("symmetry", node.name, f"its zero point is {kind}; int8 is needed")
        elif zero.any():
            yield Finding("symmetry", node.name, f"its zero point is {int(zero.reshape(-1)[0])}; 0 is needed")


def placement(graph: Graph, jetpack: JetPack, precision: str) -> Iterator[Finding]:
    """NVIDIA, "Working with Quantized Types": both operands of a weighted operator, and the residual branch of Add."""
    if not precision.startswith("int8"):
        return
    if not graph.of("QuantizeLinear"):
        yield Finding("Q/DQ", "", "there is none: int8 is explicit, calibrators are gone in TensorRT 11")
        return
    first = next((node.name for node in graph.of("Conv")), None)
    for node in graph.of(*_PRODUCTS):
        quantised = [graph.dequantised(name) for name in node.input[:2]]
        if any(quantised) and not all(quantised):
            yield Finding("Q/DQ", node.name, f"only one operand of {node.op_type} is quantised: it runs in float")
        if all(quantised) and (node.name == first or _groups(node) > 1):
            yield Finding("Q/DQ", node.name, "the waveform and positional convolutions lose the features in int8")
    for node in graph.of("Add"):
        branches = [name for name in node.input if not graph.is_constant(name)]
        if len(branches) == 2 and any(_has_int8_twin(graph, name) for name in branches):
            yield Finding("residual", node.name, "its branch is quantised elsewhere but not here: no fused kernel")


def typing(graph: Graph, jetpack: JetPack, precision: str) -> Iterator[Finding]:
    """NVIDIA, "Strongly Typed Networks": types stand in the graph; an fp32 file silently gives an fp32 engine."""
    kinds = set(graph.types.values()) | {_type_name(tensor.data_type) for tensor in graph.constants.values()}
    kind = {"int8": "float16", "fp16": "float16", "bf16": "bfloat16"}.get(precision)
    if not jetpack.weak and kind is not None and kind not in kinds:
        yield Finding("typing", "", f"strongly typed only, and nothing in the file is {kind}: it would run in fp32")
    if jetpack.typing == "weak" and "float16" in kinds:
        yield Finding("typing", "", "weakly typed: the file must be fp32, BuilderFlag.FP16 chooses the precision")
    if ("bfloat16" in kinds or precision == "bf16") and not jetpack.bf16:
        yield Finding("bf16", "", f"TensorRT {jetpack.tensorrt} has no bfloat16 (from 9.0 on)")
    if "error" in graph.types:
        yield Finding("types", "", graph.types["error"])


def shapes(graph: Graph, jetpack: JetPack, precision: str) -> Iterator[Finding]:
    """NVIDIA, "Working with Dynamic Shapes": a free axis needs a profile, and a CUDA graph needs none to be free."""
    free = {
        value.name: [d.dim_param or "?" for d in value.type.tensor_type.shape.dim if not d.dim_value]
        for value in graph.graph.input
    }
    streaming = "samples" in free and "fresh" in free
    for name, axes in free.items():
        if axes and (streaming or name != "wave"):
            yield Finding("shapes", name, f"axis {axes[0]} is free; a step is captured as a CUDA graph and must not be")


RULES: tuple[Rule, ...] = (operators, constant_inputs, symmetry, placement, typing, shapes)


def _groups(node: Any) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)


def _has_int8_twin(graph: Graph, name: str) -> bool:
    """Whether a value is also read by a QuantizeLinear while it is used as it is."""
    return any(node.input[0] == name for node in graph.of("QuantizeLinear"))


def _types(model: Any) -> dict[str, str]:
    """Value name -> type name; the key ``error`` where types of one operator do not agree."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:
        return {"error": str(error).strip().splitlines()[0]}
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    return {value.name: _type_name(value.type.tensor_type.elem_type) for value in values}


def _type_name(kind: int) -> str:
    import onnx

    return "float32" if kind == onnx.TensorProto.FLOAT else str(onnx.TensorProto.DataType.Name(kind)).lower()
