"""Operations that compute: element by element, sums, products, convolutions, norms, and weights unpacked.

Arguments of half precision arrive as float32: sums, products and statistics are computed in float32, and the caller
rounds the results.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from reuse_distill.export.targets.coreml.evaluator.registry import Arguments, operation
from reuse_distill.export.targets.coreml.mil_program import unpack

# Chebyshev coefficients of erfc, relative error below 1.2e-7 (Numerical Recipes, section 6.2).
_ERFC = (
    -1.26551223,
    1.00002368,
    0.37409196,
    0.09678418,
    -0.18628806,
    0.27886807,
    -1.13520398,
    1.48851587,
    -0.82215223,
    0.17087277,
)


@operation("add")
def add(a: Arguments) -> Any:
    return a["x"] + a["y"]


@operation("sub")
def sub(a: Arguments) -> Any:
    return a["x"] - a["y"]


@operation("mul")
def mul(a: Arguments) -> Any:
    return a["x"] * a["y"]


@operation("real_div")
def real_div(a: Arguments) -> Any:
    return a["x"] / a["y"]


@operation("floor_div")
def floor_div(a: Arguments) -> Any:
    return np.floor_divide(a["x"], a["y"])


@operation("maximum")
def maximum(a: Arguments) -> Any:
    return np.maximum(a["x"], a["y"])


@operation("minimum")
def minimum(a: Arguments) -> Any:
    return np.minimum(a["x"], a["y"])


@operation("sigmoid")
def sigmoid(a: Arguments) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * a["x"]))


@operation("clip")
def clip(a: Arguments) -> Any:
    return np.clip(a["x"], a["alpha"], a["beta"])


@operation("square")
def square(a: Arguments) -> Any:
    return np.square(a["x"])


@operation("rsqrt")
def rsqrt(a: Arguments) -> Any:
    return 1 / np.sqrt(a["x"] + a.get("epsilon", 0.0))


@operation("reduce_sum")
def reduce_sum(a: Arguments) -> Any:
    return a["x"].sum(axis=tuple(a["axes"]), keepdims=bool(a.get("keep_dims", False)))


@operation("reduce_argmax")
def reduce_argmax(a: Arguments) -> Any:
    axis, keep = int(a.get("axis", -1)), bool(a.get("keep_dims", False))
    return np.argmax(a["x"], axis=axis, keepdims=keep).astype(np.int32)


@operation("log")
def log(a: Arguments) -> Any:
    return np.log(a["x"] + np.float32(a.get("epsilon", 1e-45)))


@operation("cast")
def cast(a: Arguments) -> Any:
    return a["x"]  # the caller rounds to the declared type of the output


@operation("gelu")
def gelu(a: Arguments) -> Any:
    mode = a.get("mode", "EXACT")
    if mode != "EXACT":
        raise NotImplementedError(f"gelu mode {mode}")
    return 0.5 * a["x"] * (1 + erf(a["x"] / np.float32(math.sqrt(2))))


def erf(x: np.ndarray) -> np.ndarray:
    """The error function, in float32."""
    z = np.abs(x)
    t = 1 / (1 + 0.5 * z)
    total = np.full_like(t, _ERFC[-1])
    for coefficient in _ERFC[-2::-1]:
        total = total * t + np.float32(coefficient)
    tail = t * np.exp(-z * z + total)
    return np.where(x >= 0, 1 - tail, tail - 1)


@operation("softmax")
def softmax(a: Arguments) -> Any:
    axis = int(a.get("axis", -1))
    powers = np.exp(a["x"] - a["x"].max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


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


@operation("layer_norm")
def layer_norm(a: Arguments) -> Any:
    axes = tuple(int(axis) for axis in a["axes"])
    normed = _normed(a["x"], axes, a.get("epsilon", 1e-5))
    return normed * a.get("gamma", 1.0) + a.get("beta", 0.0)


@operation("batch_norm")
def batch_norm(a: Arguments) -> Any:
    """x [B, C, T...]: statistics of the training data, one of each per channel."""
    shape = (1, -1, *(1,) * (a["x"].ndim - 2))
    mean, variance = a["mean"].reshape(shape), a["variance"].reshape(shape)
    gamma, beta = np.asarray(a.get("gamma", 1.0)), np.asarray(a.get("beta", 0.0))
    normed = (a["x"] - mean) / np.sqrt(variance + a.get("epsilon", 1e-5))
    return normed * (gamma.reshape(shape) if gamma.ndim else gamma) + (beta.reshape(shape) if beta.ndim else beta)


@operation("instance_norm")
def instance_norm(a: Arguments) -> Any:
    """x [B, C, T...]: statistics over everything behind the channels."""
    x = a["x"]
    over = tuple(range(2, x.ndim))
    shape = (-1, *(1 for _ in over))
    gamma, beta = np.asarray(a.get("gamma", 1.0)), np.asarray(a.get("beta", 0.0))
    return _normed(x, over, a.get("epsilon", 1e-5)) * gamma.reshape(shape) + beta.reshape(shape)


def _normed(x: np.ndarray, axes: tuple[int, ...], epsilon: Any) -> np.ndarray:
    mean = x.mean(axis=axes, keepdims=True)
    centred = x - mean
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    return centred / np.sqrt(variance + np.float32(epsilon))


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
