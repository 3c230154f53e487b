"""The graph in operators that older TensorRT parsers know: opset 17, Gelu from Erf, layer norm from means.

Sources: ONNX-TensorRT ``docs/operators.md``. 8.5 and 8.6 read up to opset 17 and have no Gelu; 8.5 has no
LayerNormalization; 10.0 reads 9 to 20 and has both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.runtime.errors import RdError

OLD_OPSET = 17
# Operators of our graphs that mean the same in opset 17 as in 20, as long as they have the same inputs.
_SAME = {
    *(
        "Add",
        "Sub",
        "Mul",
        "Div",
        "MatMul",
        "Gemm",
        "Conv",
        "Softmax",
        "Transpose",
        "Reshape",
        "Concat",
        "Slice",
    ),
    *(
        "Unsqueeze",
        "Squeeze",
        "InstanceNormalization",
        "LayerNormalization",
        "Cast",
        "Identity",
        "Expand",
        "Erf",
    ),
    *("Log", "LogSoftmax", "ArgMax"),
    # Of windows and of silence before an utterance. ReduceSum has its axes as an input since 13; a Pad with axes (18)
    # does not pass the checker.
    *("Clip", "Greater", "Not", "Or", "Pad", "Reciprocal", "ReduceSum", "ConstantOfShape"),
    *("QuantizeLinear", "DequantizeLinear", "Gather", "Shape", "Sqrt", "Pow", "Constant", "Where", "Flatten"),
}


class Builder:
    """Collects nodes that replace one node; names of new nodes and values start with that node's."""

    def __init__(self, graph: Any, node: Any) -> None:
        self.graph, self.node = graph, node
        self.nodes: list[Any] = []
        self._count = 0

    def constant(self, value: float | list[float]) -> str:
        """The name of a float32 initializer."""
        from onnx import numpy_helper

        name = f"{self.node.name}_c{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node; returns the name of its value."""
        from onnx import helper

        self._count += 1
        name = output or f"{self.node.name}_v{self._count}"
        made = helper.make_node(op, list(inputs), [name], name=f"{self.node.name}_{op}_{self._count}", **attributes)
        self.nodes.append(made)
        return name


def gelu(build: Builder) -> None:
    """x / 2 * (1 + erf(x / sqrt 2)): exact, as the student computes it."""
    x, out = build.node.input[0], build.node.output[0]
    kinds = [a.s for a in build.node.attribute if a.name == "approximate"]
    if kinds and kinds[0] not in (b"none", b""):
        raise RdError(f"{build.node.name}: Gelu with approximation {kinds[0].decode()!r} is not what students compute")
    erf = build.add("Erf", build.add("Mul", x, build.constant(1 / math.sqrt(2))))
    half = build.add("Mul", x, build.constant(0.5))
    build.add("Mul", half, build.add("Add", erf, build.constant(1.0)), output=out)


def layer_norm(build: Builder) -> None:
    """(x - mean) / sqrt(variance + epsilon) * gain + bias over the last axis."""
    attributes = {a.name: a for a in build.node.attribute}
    if "axis" in attributes and attributes["axis"].i != -1:
        raise RdError(f"{build.node.name}: LayerNormalization over axis {attributes['axis'].i}, only -1 is known")
    epsilon = attributes["epsilon"].f if "epsilon" in attributes else 1e-5
    x, gain, *bias = build.node.input
    centred = build.add("Sub", x, build.add("ReduceMean", x, axes=[-1], keepdims=1))
    variance = build.add("ReduceMean", build.add("Mul", centred, centred), axes=[-1], keepdims=1)
    deviation = build.add("Sqrt", build.add("Add", variance, build.constant(epsilon)))
    scaled = build.add("Div", centred, deviation)
    if not bias:
        build.add("Mul", scaled, gain, output=build.node.output[0])
        return
    build.add("Add", build.add("Mul", scaled, gain), bias[0], output=build.node.output[0])


def lower(source: Path, target: Path, *, layer_norms: bool) -> list[str]:
    """Write ``source`` (opset 20) as opset 17 without Gelu, and without LayerNormalization where ``layer_norms``.

    Returns the names of the nodes that layer norms became. Raises RdError for an operator whose meaning in opset 17
    nobody has checked.
    """
    import onnx

    model = onnx.load(str(source))
    made = replace(model, {"Gelu": gelu, **({"LayerNormalization": layer_norm} if layer_norms else {})})
    unknown = sorted({n.op_type for n in model.graph.node} - _SAME - {"ReduceMean"})
    if unknown:
        raise RdError(f"{source.name}: {', '.join(unknown)} cannot be written in opset {OLD_OPSET}")
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OLD_OPSET))
    model.ir_version = 8  # of onnx 1.12 and 1.13, which these parsers are built with
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(target))
    return made.get("LayerNormalization", [])


def numbers_as_biases(file: Path) -> int:
    """Give a convolution without bias that one number is added to, and nothing else takes, that number as its bias.

    NVIDIA's builder fuses the sum into the convolution and then fails on its shape (TensorRT for RTX 1.7: "CHECK
    nbdims_bias"). Log-mel front ends have one: what is added before the logarithm. Returns how many were changed.
    """
    import onnx
    import onnx_ir as ir
    from onnxscript.rewriter.pattern import RewriteRule

    def pattern(op: Any, x: Any, weight: Any, number: Any) -> Any:
        return op.Add(op.Conv(x, weight, _outputs=["sum"]), number)

    def check(_: Any, weight: Any, number: Any, **__: Any) -> bool:
        return number.const_value is not None and number.const_value.size == 1 and weight.const_value is not None

    def with_bias(op: Any, x: Any, weight: Any, number: Any, **matched: Any) -> Any:
        conv, values = matched["sum"].producer(), weight.const_value.numpy()
        bias = np.full(len(values), number.const_value.numpy().reshape(-1)[0], values.dtype)
        stored = op.initializer(ir.tensor(bias), name=f"{conv.name}_bias")
        return op.Conv(x, weight, stored, **conv.attributes, _name=conv.name)

    model = ir.load(file)
    count: int = RewriteRule(pattern, with_bias, check).apply_to_model(model, commute=True)
    if count:
        written = ir.to_proto(model)
        onnx.checker.check_model(written)
        onnx.save(written, str(file))
    return count


def replace(model: Any, rewrites: dict[str, Callable[[Builder], None]]) -> dict[str, list[str]]:
    """Replace every node that has a rewrite, in place; returns the names of the new nodes by the operator replaced."""
    graph, kept = model.graph, []
    made: dict[str, list[str]] = {}
    for node in list(graph.node):
        rewrite = rewrites.get(node.op_type)
        if rewrite is None:
            kept.append(node)
            continue
        build = Builder(graph, node)
        rewrite(build)
        kept += build.nodes
        made.setdefault(node.op_type, []).extend(new.name for new in build.nodes)
    del graph.node[:]
    graph.node.extend(kept)
    return made
