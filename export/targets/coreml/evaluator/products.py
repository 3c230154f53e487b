"""Convolutions and matrix products, summed in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from reuse_distill.export.targets.coreml.evaluator.registry import Arguments, operation


@operation("linear")
def linear(a: Arguments) -> Any:
    """x [..., C] times weight [D, C]."""
    product = a["x"] @ a["weight"].T
    return product + a["bias"] if "bias" in a else product


@operation("matmul")
def matmul(a: Arguments) -> Any:
    x = np.swapaxes(a["x"], -1, -2) if bool(a.get("transpose_x", False)) else a["x"]
    y = np.swapaxes(a["y"], -1, -2) if bool(a.get("transpose_y", False)) else a["y"]
    return x @ y


@operation("conv")
def conv(a: Arguments) -> Any:
    """One-dimensional, unpadded: x [B, C, T], weight [D, C / groups, K] -> [B, D, (T - K) / stride + 1]."""
    x, weight = a["x"], a["weight"]
    if x.ndim != 3:
        raise NotImplementedError(f"conv of rank {x.ndim}")
    padded = a.get("pad_type", "valid") != "valid" and np.any(a.get("pad", 0))
    if padded or np.any(np.asarray(a.get("dilations", 1)) != 1):
        raise NotImplementedError("conv with padding or dilation")
    stride, groups = int(np.ravel(a.get("strides", 1))[0]), int(a.get("groups", 1))
    batch, channels, _ = x.shape
    kernel = weight.shape[-1]
    rows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=-1)[:, :, ::stride]  # [B, C, T', K]
    rows = rows.reshape(batch, groups, channels // groups, -1, kernel)
    rows = rows.transpose(0, 1, 3, 2, 4).reshape(batch, groups, rows.shape[3], -1)  # [B, G, T', C/G * K]
    kernels = weight.reshape(groups, weight.shape[0] // groups, -1)  # [G, D/G, C/G * K]
    output = (rows @ kernels.transpose(0, 2, 1)).transpose(0, 1, 3, 2).reshape(batch, weight.shape[0], -1)
    return output + a["bias"][:, None] if "bias" in a else output
