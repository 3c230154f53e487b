"""Attention heads scored and removed (arXiv 2211.09949, section 3.2).

A head that computes a map is one thing with the heads of the layers that reuse it: a group is a computing layer with
its reusers, and head h of all of them goes together. Scores add up over the group. Layers and groups are named by the
computing layer, counted from 1. Without reuse every layer is a group of its own, as in the study.

Scores come from weights, from what a head does to the output, or from what its maps look like; a layer that reuses a
map has the same:

    diagonality = - mean over queries of sum over keys of P(q, k) |q - k| / F     (arXiv 2006.03265), 0 where diagonal
    entropy     = - mean over queries of sum over keys of P(q, k) log P(q, k) / log F    of 0..1, 1 where flat

Shapes: B batch, F frames, H heads, D width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np
import torch
from reuse_distill.distill.compress.reshaping import keep_inputs, keep_outputs, part_name, part_of, plain_state, rebuilt
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, StudentConfig
from reuse_distill.student.layer_shape import last_factor, whole_weight
from torch import Tensor

Scores = dict[int, list[float]]  # computing layer -> score of each head
T = TypeVar("T")


def head_groups(config: StudentConfig) -> dict[int, tuple[int, ...]]:
    """Computing layer -> itself and the layers that reuse its map."""
    groups: dict[int, tuple[int, ...]] = {}
    for layer in range(1, config.layers + 1):
        source = config.map_source(layer)
        groups[source] = (*groups.get(source, ()), layer)
    return groups


def summed_over_groups(per_layer: Mapping[int, Sequence[float]], config: StudentConfig) -> Scores:
    """Scores of heads per layer -> per group."""
    return {
        source: [sum(values) for values in zip(*(per_layer[layer] for layer in layers), strict=True)]
        for source, layers in head_groups(config).items()
    }


def l1_scores(student: Student) -> Scores:
    """Sum of |W| + |b| of each head's query, key and value (a reusing layer has the value only)."""
    per_layer: dict[int, list[float]] = {}
    for layer, shape in enumerate(student.config.layer_shapes, start=1):
        totals = torch.zeros(shape.heads, dtype=torch.float64)
        for part in ("q_proj", "k_proj", "v_proj"):
            if part in shape.parts:
                module = part_of(student, layer, part)
                for value in (whole_weight(module), last_factor(module).bias):
                    totals += value.detach().double().cpu().abs().reshape(shape.heads, -1).sum(1)
        per_layer[layer] = totals.tolist()
    return summed_over_groups(per_layer, student.config)


def data_scores(student: Student, loss_of: Callable[[T], Tensor], batches: Iterable[T]) -> Scores:
    """Mean over batches of sum over frames |<context_h, dL/dcontext_h>|, scaled to length 1 within each layer.

    ``loss_of`` runs ``student`` on a batch and gives the loss L. The mode of the student (dropout) is the caller's.
    Raises RdError where there is no batch, or nothing depends on a layer's heads.
    """
    config, count = student.config, 0
    totals = {layer: torch.zeros(shape.heads) for layer, shape in enumerate(config.layer_shapes, start=1)}
    for batch in batches:
        with _contexts(student) as contexts:
            loss_of(batch).backward()
        student.zero_grad(set_to_none=True)
        for layer, context in contexts.items():
            if context.grad is None:
                raise RdError(f"the loss does not depend on the heads of layer {layer}", hint="use scores l1")
            products = (context.detach() * context.grad).unflatten(-1, (len(totals[layer]), -1))  # [B, F, H, D]
            totals[layer] += products.sum(-1).abs().sum((0, 1)).float().cpu()
        count += 1
    if not count:
        raise RdError("no audio to score heads on", hint="give --data with a few utterances")
    normed = {layer: total / count / ((total / count).norm() + 1e-20) for layer, total in totals.items()}
    return summed_over_groups({layer: value.tolist() for layer, value in normed.items()}, config)


class _contexts(ExitStack):
    """Within it, what each layer's heads give [B, F, H*D] is kept with its gradient."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def __enter__(self) -> dict[int, Tensor]:  # type: ignore[override]
        super().__enter__()
        seen: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[..., None]:
            def before(_: Any, inputs: tuple[Tensor, ...]) -> None:
                inputs[0].retain_grad()
                seen[layer] = inputs[0]

            return before

        for layer in range(1, self.student.config.layers + 1):
            handle = part_of(self.student, layer, "out_proj").register_forward_pre_hook(keep(layer))
            self.callback(handle.remove)
        return seen


def lowest_overall(scores: Scores, count: int) -> dict[int, list[int]]:
    """The ``count`` heads with the lowest scores of all groups; the best head of each group is protected."""
    ranked = sorted((value, layer, head) for layer, values in scores.items() for head, value in enumerate(values))
    best = {layer: max(range(len(values)), key=values.__getitem__) for layer, values in scores.items()}
    free = [(layer, head) for _, layer, head in ranked if head != best[layer]]
    if count > len(free):
        raise RdError(
            f"{count} of {len(ranked)} heads cannot be removed: {len(free)} can, one stays in each map",
            hint="lower --ratio",
        )
    chosen: dict[int, list[int]] = {}
    for layer, head in free[:count]:
        chosen.setdefault(layer, []).append(head)
    return chosen


def remove_heads(student: Student, removed: Mapping[int, Sequence[int]]) -> Student:
    """A student without the heads ``removed`` (computing layer -> heads from 0), in that layer and all its reusers.

    Raises RdError for a layer that computes no map, a head that there is not, and a layer left without heads.
    """
    config = student.config
    groups, shapes = head_groups(config), config.layer_shapes
    counts, state, depth = [shape.heads for shape in shapes], plain_state(student), config.head_dim
    for source, heads in removed.items():
        if source not in groups:
            raise RdError(f"layer {source} computes no map of its own", hint=f"layers that do: {sorted(groups)}")
        have = shapes[source - 1].heads
        if any(not 0 <= head < have for head in heads):
            raise RdError(f"layer {source} has heads 0..{have - 1}, {sorted(heads)} are to be removed")
        kept = [head * depth + column for head in range(have) if head not in heads for column in range(depth)]
        for layer in groups[source]:
            counts[layer - 1] = len(kept) // depth
            for part in shapes[layer - 1].parts:
                if part in ("q_proj", "k_proj", "v_proj"):
                    keep_outputs(state, part_name(layer, part), kept)
            keep_inputs(state, part_name(layer, "out_proj"), kept)
    same = all(count == config.heads for count in counts)
    return rebuilt(student, state, layer_heads=() if same else tuple(counts))


def diagonality(maps: Tensor) -> Tensor:
    """[..., F, F] -> [...]."""
    frame = torch.arange(maps.shape[-1], device=maps.device, dtype=maps.dtype)
    distance = (frame[:, None] - frame[None, :]).abs() / maps.shape[-1]
    return -(maps * distance).sum(-1).mean(-1)


def entropy(maps: Tensor) -> Tensor:
    """[..., F, F] -> [...]; maps of one frame have none."""
    each = -torch.special.xlogy(maps, maps).sum(-1).mean(-1)
    return each / math.log(max(2, maps.shape[-1]))


@torch.no_grad()
def maps_of(student: Student, wave: Tensor) -> dict[int, Tensor]:
    """Computing layer -> map [H, F, F] of one recording [T], in the chunks that the student is meant for."""
    maps = student(wave[None], context=student.config.context, with_maps=True).maps
    return {source: maps[source - 1][0].float().cpu() for source in head_groups(student.config)}


def map_scores(student: Student, waves: Sequence[Tensor]) -> tuple[Scores, Scores]:
    """(diagonality, entropy) of every head, means over recordings. Raises RdError where there are none."""
    if not waves:
        raise RdError("no audio to look at maps on", hint="give --data with a few utterances")
    sums: dict[int, Tensor] = {}
    for wave in waves:
        for source, maps in maps_of(student, wave).items():
            both = torch.stack([diagonality(maps), entropy(maps)]) / len(waves)
            sums[source] = sums[source] + both if source in sums else both
    return {s: v[0].tolist() for s, v in sums.items()}, {s: v[1].tolist() for s, v in sums.items()}


def random_scores(student: Student, seed: int) -> Scores:
    """A number per head, drawn: any order is as likely as another."""
    shapes = student.config.layer_shapes
    counts = {source: shapes[source - 1].heads for source in head_groups(student.config)}
    draws = np.random.default_rng(seed).random(sum(counts.values())).tolist()
    return {source: [draws.pop() for _ in range(count)] for source, count in counts.items()}
