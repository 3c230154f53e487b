"""Half precision for ONNX: weights, activations and states in fp16, samples and features in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.quantise.blocks import log_mel_nodes
from reuse_distill.export.targets.onnx.node_order import fold_casts, put_in_order
from reuse_distill.runtime.bundle_format.manifest import AUDIO, State

# Sums of squares over thousands of samples overflow fp16.
IN_FLOAT = ("InstanceNormalization", "ReduceSum")


def cast_to_fp16(source: Path, target: Path, capture: Capture) -> dict[str, Any]:
    """Write the fp16 artifact ``target`` from the fp32 ``source``; returns what was done, for the manifest."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(str(source))
    in_float = [port.name for port in (*capture.inputs, *capture.outputs)]
    kept = FloatPart(model, _log_mel_and_audio(model, capture.states))
    half = convert_float_to_float16(
        model, keep_io_types=[*in_float, *kept.values], op_block_list=list(IN_FLOAT), disable_shape_infer=False
    )
    model = kept.restored(half)
    del model.graph.value_info[:]  # types of before the cast, which some readers believe
    fold_casts(model)
    put_in_order(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(target))
    blocked = [node.name for node in model.graph.node if node.op_type in IN_FLOAT]
    why = [(name, "sums over all time overflow half precision") for name in blocked]
    why += [(name, "log-mel: the power of a bin spans ten decades") for name in kept.names]
    return {
        "method": "cast",
        "weights": "float16",
        "activations": "float16",
        "in_float": [{"node": name, "why": reason} for name, reason in why],
    }


def _log_mel_and_audio(model: Any, states: Sequence[State]) -> set[str]:
    """Nodes of the log-mel, and those that move samples on to the next step."""
    producers = {name: node for node in model.graph.node for name in node.output}
    names, waiting = set(log_mel_nodes(model)), [state.output for state in states if state.role == AUDIO]
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.name not in names:
            names.add(node.name)
            waiting += node.input
    return names


class FloatPart:
    """Nodes at the start of a graph with the inputs, outputs and weights that are theirs alone, taken out of it.

    Their results become inputs of what is left, so that a converter never sees them.
    """

    def __init__(self, model: Any, names: set[str]) -> None:
        from onnx import TensorProto, helper

        graph = model.graph
        self.nodes = [node for node in graph.node if node.name in names]
        self.names = [node.name for node in self.nodes]
        left = [node for node in graph.node if node.name not in names]
        made = {name for node in self.nodes for name in node.output}
        used = {name for node in left for name in node.input}
        self.values = sorted(made & used)
        self.inputs, self.outputs = list(graph.input), list(graph.output)
        self.weights = [self._own(t) for t in graph.initializer if any(t.name in n.input for n in self.nodes)]
        for place, items in (
            (graph.node, left),
            (graph.initializer, [t for t in graph.initializer if t.name in used]),
            (graph.input, [v for v in graph.input if v.name in used or not self.nodes]),
            (graph.output, [v for v in graph.output if v.name not in made]),
        ):
            del place[:]
            place.extend(items)
        graph.input.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.values)

    def _own(self, weight: Any) -> Any:
        """The weight under another name: what is left of the graph may have it too, in half precision."""
        from onnx import TensorProto

        copy = TensorProto()
        copy.CopyFrom(weight)
        copy.name = f"{weight.name}_float"
        for node in self.nodes:
            for index, name in enumerate(node.input):
                if name == weight.name:
                    node.input[index] = copy.name
        return copy

    def restored(self, model: Any) -> Any:
        """``model`` with the part in front of it again."""
        graph = model.graph
        kinds = {v.name: v for v in (*graph.input, *graph.output)}  # of the states, whose type has changed
        for place, values in ((graph.input, self.inputs), (graph.output, self.outputs)):
            ordered = [kinds.get(value.name, value) for value in values]
            del place[:]
            place.extend(ordered)
        nodes = [*self.nodes, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        graph.initializer.extend(self.weights)
        return model
