"""Which block of the student each node of its ONNX graph belongs to: the names that a recipe uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from reuse_distill.export.quantise.quantisation_recipe import FRONT_END, Recipe

LOG_MEL = f"{FRONT_END}.0"
_HEADS, _INPUT, _POSITION = "proj_head", "post_extract_proj", "pos_conv"
_LAST_PRODUCTS = (".fc1", ".fc2")


@dataclass(frozen=True)
class BlockOperation:
    """What tells an operation's block, in whatever graph it is."""

    kind: str  # conv | norm | mel (of the log-mel front end, which is never quantised) | other
    scope: str = ""  # modules that it comes from, where the graph keeps them


def blocks_of(operations: Sequence[BlockOperation], depth: int) -> list[str]:
    """The block of every operation, in execution order; ``depth`` layers are in the graph.

    Layer norms divide the graph: the last 2 per layer and 2 around them (of the front end's result, of the encoder's
    input or, where layers norm first, of their result) are known by their number. Heads and the projection into the
    encoder are known by their modules' names. Where the front end's result has no norm (DistilHuBERT) it ends with what
    follows its last convolution.
    """
    operations = [_other(one) if one.kind == "norm" and _POSITION in one.scope else one for one in operations]
    norms = sum(one.kind == "norm" for one in operations) - 2 * depth - (1 if _is_cut(operations) else 2)
    end = _end_of_front_end(operations) if norms < 0 else None
    # Convolutions count from 0, which is the log-mel where there is one.
    first = 0 if any(one.kind == "mel" for one in operations) else -1
    blocks, passed, convolutions = [], -norms if end is None else 0, first
    for index, one in enumerate(operations):
        passed += one.kind == "norm" or index == end
        convolutions += one.kind == "conv"
        blocks.append(_block(one, passed if one.kind != "norm" else passed - 1, convolutions, depth))
    return blocks


def _other(one: BlockOperation) -> BlockOperation:
    """Of a norm between positional convolutions (data2vec), which divides nothing."""
    return BlockOperation("other", one.scope)


def _is_cut(operations: Sequence[BlockOperation]) -> bool:
    """Whether layers that norm first end without the norm of the whole encoder: their last one is not the graph's."""
    last = max((index for index, one in enumerate(operations) if one.kind == "norm"), default=-1)
    return any(name in one.scope for one in operations[last + 1 :] for name in _LAST_PRODUCTS)


def _end_of_front_end(operations: Sequence[BlockOperation]) -> int:
    """The first operation after the front end without a norm: its last convolution is followed by its activation.

    The convolution after that is the positional one, the last before the encoder's norm; Whisper has none. A filter
    bank (MelHuBERT) ends with its log-mel, and the positional convolution is the only one behind it.
    """
    norm = next(index for index, one in enumerate(operations) if one.kind == "norm")
    convolutions = [index for index, one in enumerate(operations[:norm]) if one.kind == "conv"]
    scoped = any(one.scope for one in operations)
    positional = not scoped or any(_POSITION in operations[index].scope for index in convolutions)
    log_mel = [index for index, one in enumerate(operations[:norm]) if one.kind == "mel"]
    if log_mel and len(convolutions) == 1:
        return log_mel[-1] + 1
    return convolutions[-2 if positional else -1] + 2


def _block(one: BlockOperation, passed: int, convolution: int, depth: int) -> str:
    """``passed``: layer norms before it, counted from the one that ends the front end."""
    if one.kind == "mel":
        return LOG_MEL
    if _HEADS in one.scope or passed >= 2 * depth + 2:
        return "heads"
    if passed <= 0:
        return f"{FRONT_END}.{max(convolution, 1)}"  # what follows convolution 0 is the input of convolution 1
    if passed == 1:
        return "input" if _INPUT in one.scope else "position"
    number, part = divmod(passed - 2, 2)
    return f"layer.{number + 1}.{'ffn' if part else 'attention'}"


NAME_SCOPES = "name_scopes"  # the converter's note of the modules that an operation comes from
_KINDS = {"Conv": "conv", "LayerNormalization": "norm"}


def node_blocks(model: Any, depth: int) -> dict[str, str]:
    """Node name -> block, for every node of an ONNX graph as it was converted."""
    nodes, mel = list(model.graph.node), log_mel_nodes(model)
    kinds = ["mel" if node.name in mel else _KINDS.get(node.op_type, "other") for node in nodes]
    operations = [BlockOperation(kind, _scope(node)) for kind, node in zip(kinds, nodes, strict=True)]
    return {node.name: block for node, block in zip(nodes, blocks_of(operations, depth), strict=True)}


def log_mel_nodes(model: Any) -> frozenset[str]:
    """Names of the nodes from the samples to the log-mel: all before its logarithm, and those after it up to the first
    product. Empty where there is no logarithm."""
    producers = {name: node for node in model.graph.node for name in node.output}
    logarithm = next((node for node in model.graph.node if node.op_type == "Log"), None)
    if logarithm is None:
        return frozenset()
    names, waiting = {logarithm.name}, list(logarithm.input)
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.name not in names:
            names.add(node.name)
            waiting += node.input
    values = set(logarithm.output)
    for node in model.graph.node:  # in the order in which they run
        if node.op_type not in ("Conv", "MatMul", "Gemm") and values & set(node.input):
            names.add(node.name)
            values |= set(node.output)
        elif values & set(node.input):
            break
    return frozenset(names)


def _scope(node: Any) -> str:
    return next((str(p.value) for p in node.metadata_props if p.key.endswith(NAME_SCOPES)), "")


def kept_by_recipe(model: Any, recipe: Recipe, depth: int, operators: Iterable[str]) -> dict[str, str]:
    """Node name -> why, for every node of ``operators`` that the recipe keeps in float."""
    blocks, kinds = node_blocks(model, depth), set(operators)
    return {
        node.name: _why(blocks[node.name])
        for node in model.graph.node
        if node.op_type in kinds and recipe.keeps_in_float(blocks[node.name])
    }


def _why(block: str) -> str:
    if block.startswith(FRONT_END):
        return "front end: one int8 scale for loud and quiet frames loses the quiet ones before they are normalised"
    return f"{block}: kept in float by the recipe"
