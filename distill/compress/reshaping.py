"""A student with parts of its matrices taken out: new configuration, new weights, everything else untouched."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, StudentConfig
from reuse_distill.student.checkpoints.public import build_strictly
from reuse_distill.student.layer_shape import ATTENTION_PARTS, PARTS, FactoredLinear
from torch import Tensor, nn

State = dict[str, Tensor]


def part_name(layer: int, part: str) -> str:
    """Module of ``part`` (``q_proj`` … ``fc2``) in the 1-based ``layer``."""
    inner = f"self_attn.{part}" if part in ATTENTION_PARTS else part
    return f"encoder.layers.{layer - 1}.{inner}"


def part_of(student: Student, layer: int, part: str) -> nn.Linear | FactoredLinear:
    """The linear layer called ``part`` in the 1-based ``layer``."""
    module = student.get_submodule(part_name(layer, part))
    assert isinstance(module, (nn.Linear, FactoredLinear))  # noqa: S101
    return module


def lowest_in_each(
    scores: Mapping[int, Sequence[float]], count: int = 1, *, parts: str = "heads"
) -> dict[int, list[int]]:
    """The ``count`` parts with the lowest scores of each layer, lowest first; none for a count of 0.

    Raises RdError, with the name of the ``parts``, where a layer would have none left.
    """
    for layer, values in scores.items():
        if count >= len(values):
            raise RdError(
                f"{count} of the {len(values)} {parts} of layer {layer} cannot be removed: none would be left",
                hint="lower --ratio",
            )
    return {layer: sorted(range(len(v)), key=v.__getitem__)[:count] for layer, v in scores.items()} if count else {}


def keep_outputs(state: State, name: str, kept: Sequence[int]) -> None:
    """Leave the outputs ``kept`` of the linear layer ``name``, factored or not."""
    outer = f"{name}.up" if f"{name}.up.weight" in state else name
    index = torch.tensor(list(kept), dtype=torch.long)
    for parameter in ("weight", "bias"):
        state[f"{outer}.{parameter}"] = state[f"{outer}.{parameter}"].index_select(0, index)


def keep_inputs(state: State, name: str, kept: Sequence[int]) -> None:
    """Leave the inputs ``kept`` of the linear layer ``name``, factored or not."""
    inner = f"{name}.down" if f"{name}.down.weight" in state else name
    index = torch.tensor(list(kept), dtype=torch.long)
    state[f"{inner}.weight"] = state[f"{inner}.weight"].index_select(1, index)


def plain_state(student: Student) -> State:
    """The weights, detached, on the CPU; the dictionary may be changed, the tensors may not."""
    return {name: value.detach().cpu() for name, value in student.state_dict().items()}


def rebuilt(student: Student, state: State, **changes: Any) -> Student:
    """A student (eval mode) with fields of the configuration changed and ``state`` for its weights.

    Factors whose rank has become larger than the matrix are multiplied. Raises RdError for shapes that are not
    possible, such as a layer without heads.
    """
    ranks = changes.get("layer_ranks", student.config.layer_ranks)
    if ranks:
        whole = dataclasses.replace(student.config, **{**changes, "layer_ranks": ()})
        changes["layer_ranks"] = _fitting(whole, ranks, state)
    return build_strictly(dataclasses.replace(student.config, **changes), state, where="compressed student")


def _fitting(config: StudentConfig, ranks: tuple[tuple[int, ...], ...], state: State) -> tuple[tuple[int, ...], ...]:
    """Ranks that are possible in ``config``; factors of the others are multiplied in ``state``."""
    rows = []
    for number, shape in enumerate(config.layer_shapes, start=1):
        row = list(ranks[number - 1])
        for index, part in enumerate(PARTS):
            if row[index] > min(shape.size(part)):
                row[index], name = 0, part_name(number, part)
                state[f"{name}.weight"] = state.pop(f"{name}.up.weight") @ state.pop(f"{name}.down.weight")
                state[f"{name}.bias"] = state.pop(f"{name}.up.bias")
        rows.append(tuple(row))
    return tuple(rows) if any(any(row) for row in rows) else ()
