"""Reads an engine for the proof, from the JSON of TensorRT's engine inspector.

An engine's layers are kernels, each made of several ONNX nodes that it names. The proof's graph has one node for every
ONNX node that the engine runs, wired as the engine's own tensors allow. A node named by kernels that do not feed each
other is computed more than once, and appears more than once: a map that the engine computes again is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reuse_distill.export.proof.graph import ProofGraph, ProofNode
from reuse_distill.runtime.engines.tensorrt.engine_inspector import EngineLayer, read_layers
from reuse_distill.runtime.errors import RdError

_COMPUTES = ("softmax", "product", "projection")


@dataclass(frozen=True)
class _Instance:
    """One computation of an ONNX node: the kernels that share it."""

    name: str
    layers: frozenset[int]


def read_engine(inspector: str, prepared: ProofGraph) -> ProofGraph:
    """The engine's graph. ``prepared`` is the proven ONNX graph that it was built from.

    Raises RdError where the engine does not tell which of its layers computes a softmax or a product: nothing can be
    proven of such an engine.
    """
    layers = read_layers(inspector)
    above = _ancestors(layers)
    instances = {node.name: _instances(node.name, layers, above) for node in prepared.nodes}
    silent = [n.name for n in prepared.nodes if n.kind in _COMPUTES and not instances[n.name]]
    if silent:
        raise RdError(
            f"the engine names {len(silent)} softmaxes and products in none of its layers, such as {silent[0]}",
            hint="its graph cannot be proven from the inspector; the proof of the ONNX file remains valid",
        )
    nodes: list[ProofNode] = []
    for node in prepared.nodes:
        parts = instances[node.name] or [_Instance(node.name, frozenset())]  # folded away: a wire
        nodes += [replace(node, name=i.name, inputs=_inputs(node, i, instances, above, prepared)) for i in parts]
    return ProofGraph("the engine", tuple(nodes))


def _ancestors(layers: Sequence[EngineLayer]) -> list[frozenset[int]]:
    """For every layer, the layers whose results reach it."""
    producer: dict[str, int] = {}
    above: list[frozenset[int]] = []
    for index, layer in enumerate(layers):
        direct = {producer[t.name] for t in layer.inputs if t.name in producer}
        above.append(frozenset(direct.union(*(above[i] for i in direct))))
        producer.update({t.name: index for t in layer.outputs})
    return above


def _instances(name: str, layers: Sequence[EngineLayer], above: list[frozenset[int]]) -> list[_Instance]:
    """The computations of an ONNX node; kernels of which one feeds the other share one."""
    groups: list[set[int]] = []
    for index in (i for i, layer in enumerate(layers) if name in layer.onnx):
        fed = [group for group in groups if group & _near(index, layers)]
        if fed:
            fed[0].add(index)
        else:
            groups.append({index})
    many = len(groups) > 1
    return [_Instance(f"{name}@{min(group)}" if many else name, frozenset(group)) for group in groups]


def _near(index: int, layers: Sequence[EngineLayer]) -> set[int]:
    """The layers that feed layer ``index`` directly."""
    read = {t.name for t in layers[index].inputs}
    return {i for i, layer in enumerate(layers[:index]) if read & {t.name for t in layer.outputs}}


def _inputs(
    node: ProofNode,
    instance: _Instance,
    instances: dict[str, list[_Instance]],
    above: list[frozenset[int]],
    prepared: ProofGraph,
) -> tuple[str, ...]:
    """For every operand the computation of it that reaches this one; operands that reach it nowhere are left out."""
    reach = instance.layers.union(*(above[i] for i in instance.layers))
    inputs = []
    for name in node.inputs:
        options = instances[name]
        if not options:  # a wire, as good as what it comes from
            if not instance.layers or _wired(name, reach, instances, prepared):
                inputs.append(name)
            continue
        own = [option for option in options if option.layers & instance.layers]
        near = own or [option for option in options if not instance.layers or option.layers & reach]
        if near:
            inputs.append(max(near, key=lambda option: max(option.layers)).name)
    return tuple(inputs)


def _wired(name: str, reach: frozenset[int], instances: dict[str, list[_Instance]], prepared: ProofGraph) -> bool:
    """Whether something that a wire comes from is among the layers ``reach``."""
    if instances[name]:
        return any(option.layers & reach for option in instances[name])
    return any(_wired(source, reach, instances, prepared) for source in prepared.by_name[name].inputs)
