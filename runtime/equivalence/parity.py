"""How far features are from their reference, and whether that is within the bound that the manifest states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from reuse_distill.runtime.errors import RdError

BOUNDS = ("max_abs", "mean_cosine")
# Below this root mean square a reference says nothing: garbage would agree with garbage.
REFERENCE_FLOOR = 1e-3


@dataclass(frozen=True)
class Difference:
    """Features (..., F, W) against their reference of the same shape."""

    frames: int
    max_abs: float
    mean_cosine: float
    min_cosine: float

    def within(self, bound: Mapping[str, float]) -> bool:
        """Whether every stated bound holds."""
        return within(self.max_abs, self.mean_cosine, bound)

    def __str__(self) -> str:
        return f"max abs {self.max_abs:.3g}, mean cosine {self.mean_cosine:.6f}"


def difference(features: np.ndarray, reference: np.ndarray) -> Difference:
    """Compare frame by frame, (..., F, W) both. Raises RdError for other shapes or an empty or silent reference."""
    if features.shape != reference.shape:
        raise RdError(f"features of shape {features.shape}, the reference has {reference.shape}")
    a, b = features.astype(np.float64), reference.astype(np.float64)
    if not b.size or not math.sqrt(float(np.square(b).mean())) > REFERENCE_FLOOR:
        raise RdError("the reference features are empty or all but zero: nothing can be compared with them")
    same = frame_cosines(a, b)
    return Difference(
        frames=int(np.prod(features.shape[:-1])),
        max_abs=float(np.abs(a - b).max()),
        mean_cosine=float(same.mean()),
        min_cosine=float(same.min()),
    )


def frame_cosines(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Cosine of every frame (..., F) of features and their reference, (..., F, W) both; 1 where both are zero."""
    a, b = features.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines: np.ndarray = np.where(norms > 0, (a * b).sum(-1) / np.maximum(norms, 1e-300), (a == b).all(-1))
    return cosines


def within(max_abs: float, mean_cosine: float, bound: Mapping[str, float]) -> bool:
    """Whether every stated bound holds; NaN is within none."""
    return max_abs <= bound.get("max_abs", math.inf) and mean_cosine >= bound.get("mean_cosine", -1.0)


def stated_bound(parity: Mapping[str, Any]) -> dict[str, float]:
    """``parity.bound`` of a manifest. Raises RdError where there is none: then nothing can pass."""
    bound = parity.get("bound")
    if not isinstance(bound, dict) or not bound or set(bound) - set(BOUNDS):
        raise RdError(f"manifest: parity.bound is {bound!r}, one of {', '.join(BOUNDS)} is needed")
    if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in bound.values()):
        raise RdError(f"manifest: parity.bound {bound!r} is not a number")
    return {name: float(value) for name, value in bound.items()}
