"""Norms, with their statistics in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from reuse_distill.export.targets.coreml.evaluator.registry import Arguments, operation


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
