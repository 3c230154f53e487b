"""Static int8 for ONNX: Q/DQ around convolutions, weight products, sums and GELU; attention stays in float.

Which operators, and why the others are left out, was measured (docs/quantisation.md): quantising the softmax costs a
fifth of the time by itself, the waveform convolution and the positional convolution lose the most fidelity.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import RdError

OPERATORS = ("Conv", "MatMul", "Gemm", "Add", "Gelu")


def excluded_nodes(model: Any) -> dict[str, str]:
    """Node name -> why it stays in float, for every node of ``OPERATORS`` that does."""
    constants = {tensor.name for tensor in model.graph.initializer}
    consumers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    producers = {name: node for node in model.graph.node for name in node.output}
    outputs = {value.name for value in model.graph.output}
    excluded: dict[str, str] = {}
    first_conv = True
    for node in model.graph.node:
        if node.op_type == "Conv":
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            if first_conv:
                excluded[node.name] = "waveform convolution: its input has the full dynamic range of the microphone"
            elif groups > 1:
                excluded[node.name] = "positional convolution: 128 taps in float, its weights are stored as int8"
            first_conv = False
        elif node.op_type in ("MatMul", "Gemm") and not constants & set(node.input):
            excluded[node.name] = "attention product: both operands are computed"
        elif node.op_type == "Add":
            why = _sum_in_float(node, constants, consumers, producers, outputs)
            if why:
                excluded[node.name] = why
    return excluded


def _sum_in_float(
    node: Any, constants: set[str], consumers: dict[str, list[Any]], producers: dict[str, Any], outputs: set[str]
) -> str | None:
    users = [user for name in node.output for user in consumers.get(name, [])]
    if any(user.op_type == "Softmax" for user in users):
        return "attention mask: the sum reaches -1e4"
    sources = [producers[name] for name in node.input if name in producers]
    if len(sources) == 2 and all(s.op_type == "MatMul" and not constants & set(s.input) for s in sources):
        return "sum of the cached and the new part of the attention product"
    if _reaches_output(node, consumers, outputs):
        return "bias of a projection head: its result is the feature itself"
    return None


def _reaches_output(node: Any, consumers: dict[str, list[Any]], outputs: set[str]) -> bool:
    """Whether ``node`` feeds a graph output through layout operations alone."""
    for name in node.output:
        if name in outputs:
            return True
        users = consumers.get(name, [])
        if users and all(
            u.op_type in ("Unsqueeze", "Concat", "Reshape") and _reaches_output(u, consumers, outputs) for u in users
        ):
            return True
    return False


def front_end_nodes(model: Any, depth: int) -> dict[str, str]:
    """Node name -> reason, for every operator of the convolutional front end that could be quantised.

    The front end ends in a LayerNormalization; behind it come the encoder's and two per layer.
    """
    norms = [i for i, node in enumerate(model.graph.node) if node.op_type == "LayerNormalization"]
    end = norms[len(norms) - 2 * depth - 2]
    why = "front end: one int8 scale for loud and quiet frames loses the quiet ones before they are normalised"
    return {node.name: why for node in model.graph.node[:end] if node.op_type in OPERATORS}


def quantise_static(
    source: Path, target: Path, feeds: Iterable[dict[str, np.ndarray]], *, depth: int, front_end_in_float: bool
) -> dict[str, Any]:
    """Write the int8 artifact ``target`` from the fp32 ``source``; returns what was done, for the manifest.

    Activations are uint8 per tensor, weights int8 per output channel, ranges min-max over ``feeds``. ``depth`` is the
    number of layers in the graph. Raises RdError with the quantiser's own message when it fails.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model = onnx.load(str(source))
    excluded = excluded_nodes(model)
    if front_end_in_float:
        excluded = {**front_end_nodes(model, depth), **excluded}
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # the quantiser advises pre-processing that has been done
    try:
        quantize_static(
            str(source),
            str(target),
            _reader(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATORS),
            nodes_to_exclude=list(excluded),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    except OSError:
        raise  # of the disk: the bundle writer says so
    except Exception as error:
        raise RdError(
            f"ONNX Runtime's quantiser failed: {str(error).strip().splitlines()[0]}",
            hint="export with --precision fp32, or see constraints.txt for the verified versions",
        ) from error
    finally:
        logger.setLevel(level)
    convolutions = {node.name for node in model.graph.node if node.op_type == "Conv"}
    small = [name for name, why in excluded.items() if name in convolutions and not why.startswith("waveform")]
    packed = pack_convolutions(target, small)
    return {
        "method": "static, min-max",
        "format": "QDQ",
        "activations": "uint8 per tensor",
        "weights": "int8 per output channel, symmetric",
        "operators": list(OPERATORS),
        "front_end": "float" if front_end_in_float else "int8",
        "in_float": [{"node": name, "why": why} for name, why in excluded.items()],
        "weights_only": packed,
    }


def _reader(feeds: Iterable[dict[str, np.ndarray]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    return Reader()


def pack_convolutions(file: Path, nodes: list[str]) -> list[str]:
    """Store the kernels of the named float convolutions as int8 per output channel; returns what was packed.

    ``Cast`` and ``Mul`` unpack them and are folded when the artifact is loaded: small on disk, float when run.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(file))
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    packed = []
    for node in [n for n in graph.node if n.name in nodes]:
        name = node.input[1]
        weight = numpy_helper.to_array(tensors[name])
        scale = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True) / 127
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        rounded = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
        graph.initializer.remove(tensors[name])
        graph.initializer.append(numpy_helper.from_array(rounded, f"{name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        cast = helper.make_node(
            "Cast", [f"{name}_int8"], [f"{name}_cast"], name=f"{name}_cast", to=onnx.TensorProto.FLOAT
        )
        scaled = helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name], name=f"{name}_unpack")
        graph.node.insert(0, scaled)
        graph.node.insert(0, cast)
        packed.append(f"{node.name}: {math.prod(weight.shape)} weights")
    onnx.save(model, str(file))
    return packed
