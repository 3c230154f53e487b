"""The recording in a bundle, its expected features, and whether this machine still gives them."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from reuse_distill.runtime.bundle import SELFTEST, Bundle
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ, frames_for
from reuse_distill.runtime.parity import Difference, difference, stated_bound

if TYPE_CHECKING:
    from reuse_distill.runtime.encoder import Encoder


@dataclass(frozen=True)
class Expected:
    """``selftest.npz``: a recording at 16 kHz and what torch in float32 makes of it."""

    wave: np.ndarray  # (T,)
    features: np.ndarray  # (N, F, W)
    tail_frames: np.ndarray  # (K,): lengths in frames to which the recording is cut
    tail_features: np.ndarray  # (K, N, M, W): the last M frames of each cut


@dataclass(frozen=True)
class SelfTest:
    """What ``Encoder.selftest`` found."""

    passed: bool
    difference: Difference
    bound: dict[str, float]

    def __str__(self) -> str:
        limits = ", ".join(f"{name} {value:g}" for name, value in self.bound.items())
        verdict = "passed" if self.passed else "FAILED"
        return f"{verdict}: {self.difference} over {self.difference.frames} frames (bound: {limits})"


def read_expected(bundle: Bundle) -> Expected:
    """Read ``selftest.npz``. Raises RdError where it is missing or does not fit the manifest."""
    path, manifest = bundle.path / SELFTEST, bundle.manifest
    if SELFTEST not in manifest.files:
        raise RdError(f"{bundle.path}: holds no {SELFTEST}", hint="export the bundle again")
    arrays = _load(path)
    wave, features = arrays["wave"], arrays["features"]
    layers, width = len(manifest.layers), manifest.feature_width
    wanted = (layers, frames_for(len(wave)), width)
    if wave.ndim != 1 or features.shape != wanted:
        raise RdError(f"{path}: features of shape {features.shape} for {wave.shape} samples, {wanted} is needed")
    tails = arrays.get("tail_frames", np.zeros(0, np.int64))
    tail_features = arrays.get("tail_features", np.zeros((0, layers, 0, width), np.float32))
    if tail_features.ndim != 4 or tail_features.shape[:2] != (len(tails), layers) or tail_features.shape[3] != width:
        raise RdError(f"{path}: tail_features of shape {tail_features.shape} for {len(tails)} tails")
    return Expected(wave, features, tails, tail_features)


def run_selftest(encoder: Encoder) -> SelfTest:
    """Extract the features of the recording and compare them within the manifest's bound."""
    expected, bound = read_expected(encoder.bundle), stated_bound(encoder.manifest.parity)
    found = encoder.extract(expected.wave, SAMPLE_RATE_HZ)
    result = difference(found.reshape(expected.features.shape), expected.features)
    return SelfTest(result.within(bound), result, bound)


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise RdError(f"{path}: cannot be read: {error}", hint="export the bundle again") from None
    for name in ("wave", "features"):
        if name not in arrays:
            raise RdError(f"{path}: array {name!r} is missing; found {', '.join(sorted(arrays)) or 'none'}")
    return arrays
