"""The proof that an artifact computes each attention map once and reuses it where the student does.

For every layer of the student that the artifact contains:
- its value product takes a map, and from there to the map's softmax there are only layout and Q/DQ nodes;
- a computing layer's map is the softmax of a product of its own queries and keys;
- a reusing layer's map is the very softmax of its source layer (``shared``), or a softmax of it (``renormalised``);
- on its way to the value product it is cut and turned as in its source layer and in no other way, so that every head
  takes its own map (where the file tells numbers of its layout operations);
- between one layer's value product and the next there are exactly the weights that the layer should have: a reusing
  layer has no query and no key projection, whatever they might be called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reuse_distill.export.capture.exported_layers import depth_of
from reuse_distill.export.proof.graph import ProofGraph, ProofNode
from reuse_distill.runtime.bundle_format.manifest import GraphProof, ReusedMap
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import StudentConfig
from reuse_distill.student.tasks import LoadedHead

_HINT = "the artifact does not compute what the student does: do not ship it, and report the export that made it"


@dataclass(frozen=True)
class _ValueProduct:
    """The value product(s) of one layer; a step has two, cached and new values, that are added."""

    nodes: tuple[ProofNode, ...]
    softmax: ProofNode
    path: tuple[str, ...]  # operations between the map and the last of the nodes
    moves: tuple[tuple[str, ...], ...]  # what these do to axes, of every node; sorted


def prove(
    graph: ProofGraph,
    config: StudentConfig,
    *,
    exported: tuple[int, ...],
    features: str,
    tasks: Sequence[LoadedHead] = (),
) -> GraphProof:
    """Establish the proof on ``graph``; raises RdError that names the first thing found wrong.

    ``exported``: layers that come out or that ``tasks`` take.
    """
    depth = depth_of(config, exported, features)
    if not graph.of_kind("softmax"):
        raise _broken(graph, "no softmax found; one that an optimiser took apart (fp16 on CPUs) is not recognised")
    products = _value_products(graph)
    if len(products) != depth:
        raise _broken(graph, f"{len(products)} value products found, the student has {depth} layers up to here")
    reused = []
    for layer, product in enumerate(products, start=1):
        source = products[config.map_source(layer) - 1]
        if config.reuses(layer):
            _check_reuse(graph, config, layer, product, source)
            reused.append(ReusedMap(layer, config.map_source(layer), product.nodes[0].name, product.path))
        else:
            _check_computed(graph, layer, product)
    _check_weights(graph, config, products, exported=exported, features=features, tasks=tasks)
    _check_tasks(graph, products, tasks)
    _check_positions(graph, config)
    computed = [layer for layer in range(1, depth + 1) if not config.reuses(layer)]
    softmaxes = len(graph.of_kind("softmax")) - _own_softmaxes(graph, tasks)
    expected = depth if config.reuse_mode == "renormalised" else len(computed)
    if softmaxes != expected:
        raise _broken(graph, f"{softmaxes} softmaxes found, {config.reuse_mode} reuse needs {expected}")
    return GraphProof(depth, len(computed), softmaxes, config.reuse_mode, tuple(reused), graph.file)


def _value_products(graph: ProofGraph) -> list[_ValueProduct]:
    """Products with a map among their operands, one entry per layer, in execution order."""
    products: dict[str, tuple[ProofNode, tuple[ProofNode, ...]]] = {}
    for node in graph.of_kind("product"):
        for operand in node.inputs:
            above, path = graph.through_layout(operand)
            if above is not None and above.kind == "softmax":
                products[node.name] = (above, path)
    partner = _added_pairs(graph, set(products))
    order = {name: position for position, name in enumerate(products)}
    layers = []
    for name, (softmax, path) in products.items():
        other = partner.get(name, name)
        if order[name] < order[other]:
            continue  # the later one has the layer's own values: layers come in order by it
        if products[other][0] is not softmax:
            raise _broken(graph, f"{name} and {other} are added, but take different maps")
        nodes = tuple(graph.by_name[one] for one in dict.fromkeys((other, name)))
        moves = sorted(_moves((*products[node.name][1], node)) for node in nodes)
        layers.append(_ValueProduct(nodes, softmax, tuple(one.op for one in path), tuple(moves)))
    return layers


def _moves(nodes: Sequence[ProofNode]) -> tuple[str, ...]:
    return tuple(node.moves for node in nodes if node.moves)


def _added_pairs(graph: ProofGraph, products: set[str]) -> dict[str, str]:
    """Value products whose results are added to each other (cached and new part of one step)."""
    pairs = {}
    for node in graph.of_kind("add"):
        above = [graph.through_layout(name)[0] for name in node.inputs]
        names = [n.name for n in above if n is not None and n.name in products]
        if len(names) == 2:
            pairs[names[0]], pairs[names[1]] = names[1], names[0]
    return pairs


def _map_origin(graph: ProofGraph, softmax: ProofNode) -> tuple[ProofNode | None, tuple[str, ...]]:
    """What a softmax normalises, past layout, the additive mask and a scale; and what these do to axes."""
    node: ProofNode | None = softmax
    moved: tuple[str, ...] = ()
    while node is not None:
        above = [graph.through_layout(name) for name in node.inputs]
        branches = [(branch, _moves(passed)) for branch, passed in above if branch is not None]
        for branch, moves in branches:
            if branch.kind in ("product", "softmax"):
                return branch, (*moved, *moves)
        onward = [(branch, moves) for branch, moves in branches if branch.kind == "add" or _is_joint(branch)]
        node, moves = onward[0] if onward else (None, ())
        moved = (*moved, *moves)
    return None, moved


def _is_joint(node: ProofNode) -> bool:
    return node.op.lower() in ("concat", "mul", "div", "cat")


def _check_computed(graph: ProofGraph, layer: int, product: _ValueProduct) -> None:
    origin, _ = _map_origin(graph, product.softmax)
    if origin is None or origin.kind != "product":
        raise _broken(graph, f"layer {layer}: its map is not the softmax of a query-key product")


def _check_reuse(
    graph: ProofGraph, config: StudentConfig, layer: int, product: _ValueProduct, source: _ValueProduct
) -> None:
    before = config.map_source(layer)
    if config.reuse_mode == "shared":
        if product.softmax is not source.softmax:
            raise _broken(
                graph, f"layer {layer}: takes the map of {product.softmax.name}, not the one of layer {before}"
            )
    else:
        origin, moved = _map_origin(graph, product.softmax)
        if origin is not source.softmax:
            raise _broken(graph, f"layer {layer}: its softmax does not take the map of layer {before}")
        if moved:
            raise _broken(graph, f"layer {layer}: {_listed(moved)} between the map of layer {before} and its softmax")
    if product.moves != source.moves:
        ours, theirs = (" and ".join(map(_listed, one.moves)) for one in (product, source))
        raise _broken(graph, f"layer {layer}: {ours} between the map and its value product, {theirs} in layer {before}")


def _listed(moves: Sequence[str]) -> str:
    return ", ".join(moves) or "nothing"


def _check_weights(
    graph: ProofGraph,
    config: StudentConfig,
    products: list[_ValueProduct],
    *,
    exported: tuple[int, ...],
    features: str,
    tasks: Sequence[LoadedHead],
) -> None:
    behind = 0  # output projection and feed-forward block of the layer before
    front = config.conv_layers[-1][0]
    seen: frozenset[str] = frozenset()
    for layer, product in enumerate(products, start=1):
        above = graph.projections_above([node.name for node in product.nodes])
        counted = _elements(graph, above - seen)
        shape = config.shape_of(layer)
        expected = shape.weights("q_proj", "k_proj", "v_proj")
        if config.relative_buckets and not config.reuses(layer):
            expected += 2 * config.head_dim  # the gate of the relative position bias
        expected += behind if layer > 1 else (front * config.width if config.projects_input else 0)
        if counted != expected:
            raise _broken(
                graph, f"layer {layer}: {counted} projection weights lead to its value product, not {expected}"
            )
        seen, behind = seen | above, shape.weights("out_proj", "fc1", "fc2")
    heads = len(exported) * head_weights(config) if features == "heads" else 0
    total = _elements(graph, frozenset(node.name for node in graph.of_kind("projection")))
    expected = _elements(graph, seen) + behind + heads + sum(_task_weights(task) for task in tasks)
    if total != expected:
        raise _broken(graph, f"{total} projection weights in all, {expected} expected")


def _task_weights(task: LoadedHead) -> int:
    return sum(math.prod(shape) for shape in _products_of(task))


def _products_of(task: LoadedHead) -> list[tuple[int, ...]]:
    """Shapes of the weights that a head's own products have."""
    return [shape for name, shape in task.config.shapes.items() if name.endswith("weight")]


def _check_tasks(graph: ProofGraph, products: list[_ValueProduct], tasks: Sequence[LoadedHead]) -> None:
    """Every product of a head is there with all of its weights, after the layers and leading to none of them."""
    before = graph.projections_above([node.name for product in products for node in product.nodes])
    after = [node.weight_elements for node in graph.of_kind("projection") if node.name not in before]
    for task in tasks:
        for shape in _products_of(task):
            if math.prod(shape) not in after:
                raise _broken(graph, f"head {task.name!r}: no product with its {math.prod(shape)} weights was found")
            after.remove(math.prod(shape))


def _own_softmaxes(graph: ProofGraph, tasks: Sequence[LoadedHead]) -> int:
    """Softmaxes of heads: they normalise what a constant weight gives, not a map; one for each head at most."""
    if not tasks:
        return 0
    own = sum(_map_origin(graph, node)[0] is None for node in graph.of_kind("softmax"))
    most = sum(task.config.output.kind in ("spot", "ctc") for task in tasks)
    if own > most:
        raise _broken(graph, f"{own} softmaxes normalise no map, heads have {most}")
    return own


def _check_positions(graph: ProofGraph, config: StudentConfig) -> None:
    """The relative position bias is looked up in one table for all layers, where the graph looks it up at all."""
    table = (2 * config.relative_distance + 1) * config.heads
    lookups = [node for node in graph.of_kind("lookup") if node.weight_elements == table]
    if config.relative_buckets and len(lookups) > 1:
        raise _broken(graph, f"{len(lookups)} lookups in the table of relative positions, one is enough for all layers")


def head_weights(config: StudentConfig) -> int:
    """Projection weights of one exported head; where time is reduced it gives every frame of a step."""
    width = config.width * (config.head_width or 0) * config.time_reduction
    return width + (config.width**2 if config.head_kind == "split" else 0)


def _elements(graph: ProofGraph, names: frozenset[str]) -> int:
    return sum(graph.by_name[name].weight_elements for name in names)


def _broken(graph: ProofGraph, what: str) -> RdError:
    return RdError(f"graph proof failed on {graph.file}: {what}", hint=_HINT)
