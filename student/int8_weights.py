"""Weights of a checkpoint stored in int8: half the size of float16 on the disk, floats again once loaded.

Every matrix (two dimensions or more) of at least 1024 values is stored as int8 beside NAME.int8_scale, one float32 for
each row (output channel): weight = int8 x scale, symmetric, 127 for the largest of the row. What is smaller is float16.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from reuse_distill.runtime.errors import RdError
from torch import Tensor

SCALE = ".int8_scale"
LEAST = 1024  # values of a matrix that is worth it
LARGEST = 127


def packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state as it is stored."""
    stored: dict[str, Tensor] = {}
    for name, value in state.items():
        if value.ndim < 2 or value.numel() < LEAST:
            stored[name] = value.half()
            continue
        scale = (value.float().flatten(1).abs().amax(1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        stored[name] = (value.float() / _per_row(scale, value)).round().to(torch.int8)
        stored[name + SCALE] = scale
    return stored


def unpacked(state: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """The state as float32 where it was ``packed``, as it is otherwise.

    Raises RdError for int8 without a scale, and for a scale of something else, of another length or not finite.
    """
    scales = {name.removesuffix(SCALE): value for name, value in state.items() if name.endswith(SCALE)}
    weights = {name: value for name, value in state.items() if not name.endswith(SCALE)}
    lonely = [name for name, value in weights.items() if value.dtype == torch.int8 and name not in scales]
    lonely += [name for name in scales if name not in weights or weights[name].dtype != torch.int8]
    if lonely:
        raise RdError(f"{where}: int8 weights and scales do not belong together: {', '.join(lonely[:3])}")
    for name, scale in scales.items():
        rows = weights[name].shape[:1]
        if scale.shape != rows or not bool(torch.isfinite(scale.float()).all()):
            raise RdError(f"{where}: {name}{SCALE} is {list(scale.shape)} or not finite, expected {list(rows)} numbers")
        weights[name] = weights[name].float() * _per_row(scale.float(), weights[name])
    return weights


def is_packed(weights: Path) -> bool:
    """Whether a file of weights holds int8."""
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as stored:
        return any(name.endswith(SCALE) for name in stored.keys())  # noqa: SIM118


def _per_row(scale: Tensor, value: Tensor) -> Tensor:
    """[rows] -> [rows, 1, ...] with the dimensions of ``value``."""
    return scale.reshape(-1, *[1] * (value.ndim - 1))
