"""How far torch in float32 is itself from torch in float64: no artifact in float32 can be held closer to it.

Encoders differ by orders of magnitude in how much they amplify rounding, and features of layers before a last norm in
how large they are. The bound of fp32 is 1e-4 all the same, unless torch in float32 shows that it does not keep half of
that itself.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from reuse_distill.export.parity.reference import reference_features
from reuse_distill.export.spec import ExportSpec
from reuse_distill.student import Student

# Of the features' root mean square: what amplifies rounding beyond that cannot be judged, and stays refused.
LARGEST_RELATIVE = 1e-3


@dataclass(frozen=True)
class Rounding:
    """Of torch in float32 over the recordings that check: largest distance from float64, RMS of the features."""

    max_abs: float
    rms: float

    @property
    def bound(self) -> float:
        """Two computations in float32, each as far from the exact features as torch is, are at most that far apart."""
        return min(2 * self.max_abs, LARGEST_RELATIVE * self.rms)

    @property
    def described(self) -> dict[str, float]:
        """For ``parity.rounding`` of the manifest."""
        return {"torch_float32_to_float64": self.max_abs, "reference_rms": self.rms}


def torch_rounding(student: Student, spec: ExportSpec, clips: Sequence[np.ndarray]) -> Rounding:
    """What float32 does to the exported features (N, F, W) of ``clips``, (T,) float32 each."""
    exact = copy.deepcopy(student).double()
    distances, squares = [], []
    for clip in clips:
        reference = reference_features(exact, spec, clip.astype(np.float64))
        distances.append(float(np.abs(reference_features(student, spec, clip) - reference).max()))
        squares.append(float(np.square(reference).mean()))
    return Rounding(max(distances), float(np.sqrt(np.mean(squares))))


def allowing_for_rounding(
    parity: dict[str, Any], student: Student, spec: ExportSpec, clips: Sequence[np.ndarray]
) -> dict[str, Any]:
    """``parity`` of an fp32 artifact outside 1e-4, with torch's own rounding, and its bound where that is larger."""
    rounding = torch_rounding(student, spec, clips)
    bound = max(rounding.bound, parity["bound"]["max_abs"])
    return {**parity, "bound": {"max_abs": bound}, "rounding": rounding.described}
