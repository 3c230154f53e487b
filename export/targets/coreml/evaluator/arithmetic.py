"""Element by element, and sums: arguments of half precision arrive as float32, results are rounded by the caller."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from reuse_distill.export.targets.coreml.evaluator.registry import Arguments, operation

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
