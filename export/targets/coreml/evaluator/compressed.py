"""Compressed weights unpacked, and activations rounded to eight bits and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from reuse_distill.export.targets.coreml.evaluator.registry import Arguments, operation
from reuse_distill.export.targets.coreml.mil_program import unpack


@operation("constexpr_affine_dequantize")
def affine_dequantize(a: Arguments) -> Any:
    """scale * (data - zero point), the scale per row of ``axis``."""
    data, axis = a["quantized_data"], int(a["axis"])
    return _scaled(data, np.asarray(a["scale"]), np.asarray(a["zero_point"]), axis)


@operation("constexpr_blockwise_shift_scale")
def blockwise_shift_scale(a: Arguments) -> Any:
    """scale * (data - offset); scale and offset have one entry per block along every axis."""
    data = a["data"].astype(np.float32)
    if "offset" in a:
        data = data - _blown_up(a["offset"].astype(np.float32), data.shape)
    return data * _blown_up(a["scale"].astype(np.float32), data.shape)


@operation("constexpr_lut_to_dense")
def lut_to_dense(a: Arguments) -> Any:
    """A palette's entries by their indices: packed bits with a shape (iOS 16), or as they are (iOS 18)."""
    table = a["lut"]
    if "shape" in a:
        shape = tuple(int(size) for size in a["shape"])
        bits = (len(table) - 1).bit_length()
        return table[unpack(a["indices"], bits, int(np.prod(shape)))].reshape(shape)
    indices = a["indices"]
    if table.shape[-1] != 1 or int(np.prod(table.shape[:-2])) != 1:
        raise NotImplementedError("constexpr_lut_to_dense with a palette per group or of vectors")
    return table.reshape(-1)[indices]


@operation("constexpr_cast")
def constexpr_cast(a: Arguments) -> Any:
    return a["source_val"]


@operation("quantize")
def quantize(a: Arguments) -> Any:
    """round(x / scale) + zero point, cut to the range of the output type."""
    axis = int(a.get("axis", -1))
    scale = _along(np.asarray(a["scale"], np.float32), a["input"].ndim, axis)
    zero = _along(np.asarray(a.get("zero_point", 0), np.float32), a["input"].ndim, axis)
    limits = np.iinfo(a["output_dtype"])
    return np.clip(np.rint(a["input"] / scale) + zero, limits.min, limits.max)


@operation("dequantize")
def dequantize(a: Arguments) -> Any:
    return _scaled(a["input"], np.asarray(a["scale"]), np.asarray(a.get("zero_point", 0)), int(a.get("axis", -1)))


def _scaled(data: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int) -> np.ndarray:
    factor = _along(scale.astype(np.float32), data.ndim, axis)
    return (data.astype(np.float32) - _along(zero.astype(np.float32), data.ndim, axis)) * factor


def _along(values: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """A scalar as it is; a vector shaped so that it runs along ``axis``."""
    if values.ndim == 0:
        return values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def _blown_up(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    for axis, size in enumerate(shape):
        blocks = np.repeat(blocks, size // blocks.shape[axis], axis=axis)
    return blocks
