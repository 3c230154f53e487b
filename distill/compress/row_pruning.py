"""Feed-forward units removed by their weights (arXiv 2211.09949, row pruning)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from reuse_distill.distill.compress.reshaping import keep_inputs, keep_outputs, part_name, part_of, plain_state, rebuilt
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student
from reuse_distill.student.layer_shape import last_factor, whole_weight


def row_scores(student: Student) -> dict[int, list[float]]:
    """Layer -> of each unit, the sum of |fc1 row| + |fc1 bias| + |fc2 column|."""
    scores = {}
    for layer in range(1, student.config.layers + 1):
        inner, outer = part_of(student, layer, "fc1"), part_of(student, layer, "fc2")
        with torch.no_grad():
            into = whole_weight(inner).abs().sum(1) + last_factor(inner).bias.abs()
            total = into + whole_weight(outer).abs().sum(0)
        scores[layer] = total.double().tolist()
    return scores


def lowest_rows(scores: Mapping[int, Sequence[float]], count: int) -> dict[int, list[int]]:
    """The ``count`` units with the lowest scores of each layer, lowest first.

    Raises RdError where a layer would have none left.
    """
    for layer, values in scores.items():
        if count >= len(values):
            raise RdError(
                f"{count} of the {len(values)} units of layer {layer} cannot be removed: none would be left",
                hint="lower --ratio",
            )
    return {layer: sorted(range(len(v)), key=v.__getitem__)[:count] for layer, v in scores.items()} if count else {}


def remove_rows(student: Student, removed: Mapping[int, Sequence[int]]) -> Student:
    """A student without the units ``removed`` (layer from 1 -> units from 0) of its feed-forward blocks.

    Raises RdError for a unit that there is not and for a layer left without units.
    """
    shapes, state = student.config.layer_shapes, plain_state(student)
    widths = [shape.ffn_width for shape in shapes]
    for layer, units in removed.items():
        if not 1 <= layer <= len(shapes):
            raise RdError(f"there is no layer {layer}, the student has {len(shapes)}")
        have, gone = widths[layer - 1], set(units)
        if any(not 0 <= unit < have for unit in gone):
            raise RdError(f"layer {layer} has units 0..{have - 1}, {max(gone)} is to be removed")
        kept = [unit for unit in range(have) if unit not in gone]
        keep_outputs(state, part_name(layer, "fc1"), kept)
        keep_inputs(state, part_name(layer, "fc2"), kept)
        widths[layer - 1] = len(kept)
    same = all(width == student.config.ffn_width for width in widths)
    return rebuilt(student, state, layer_ffn_widths=() if same else tuple(widths))
