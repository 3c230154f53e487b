"""The recording in a bundle, its expected features, and whether this machine still gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from reuse_distill.runtime.bundle_format.bundle import SELFTEST, Bundle
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.equivalence.output_views import output_views
from reuse_distill.runtime.equivalence.parity import Difference, difference
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ, frames_for
from reuse_distill.runtime.untrusted_files import read_npz

if TYPE_CHECKING:
    from reuse_distill.runtime.encoder import Encoder


@dataclass(frozen=True)
class Expected:
    """``selftest.npz``: a recording at 16 kHz and what torch in float32 makes of it."""

    wave: np.ndarray  # (T,)
    features: np.ndarray  # (N, F, W)
    tail_frames: np.ndarray  # (K,): lengths in frames to which the recording is cut
    tail_features: np.ndarray  # (K, N, M, W): the last M frames of each cut
    heads: dict[str, np.ndarray] = field(default_factory=dict)  # (F, C) of each head
    tail_heads: dict[str, np.ndarray] = field(default_factory=dict)  # (K, M, C)
    switch_chunks: tuple[int, ...] = ()  # sizes of the steps of a stream that changes them; none: steps have one size
    switch_features: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))  # (N, F, W) of it
    switch_heads: dict[str, np.ndarray] = field(default_factory=dict)  # (F, C) of each head


@dataclass(frozen=True)
class SelfTest:
    """What ``Encoder.selftest`` found."""

    passed: bool
    difference: Difference  # of the features, or of the first head where there are none
    bound: dict[str, float]
    heads: dict[str, Difference] = field(default_factory=dict)  # of each head's rows, as its bound compares them

    def __str__(self) -> str:
        limits = ", ".join(f"{name} {value:g}" for name, value in self.bound.items())
        verdict = "passed" if self.passed else "FAILED"
        heads = "".join(f"; head {name}: {one}" for name, one in self.heads.items())
        return f"{verdict}: {self.difference} over {self.difference.frames} frames (bound: {limits}){heads}"


def read_expected(bundle: Bundle) -> Expected:
    """Read ``selftest.npz``. Raises RdError where it is missing or does not fit the manifest."""
    path, manifest = bundle.path / SELFTEST, bundle.manifest
    if SELFTEST not in manifest.files:
        raise RdError(f"{bundle.path}: holds no {SELFTEST}", hint="export the bundle again")
    arrays = _load(path)
    wave, features = arrays["wave"], arrays["features"]
    layers, width = len(manifest.layers), manifest.feature_width
    expected = (layers, frames_for(len(wave)), width)
    if features.shape != expected:
        raise RdError(f"{path}: features of shape {features.shape} for {wave.shape} samples, {expected} is needed")
    tails = arrays.get("tail_frames", np.zeros(0, np.int64))
    tail_features = arrays.get("tail_features", np.zeros((0, layers, 0, width), np.float32))
    frames = features.shape[1]
    if tails.ndim != 1 or tails.dtype.kind not in "iu" or not all(0 <= cut <= frames for cut in tails.tolist()):
        raise RdError(f"{path}: tail_frames are not lengths of up to {frames} frames")
    cut_shape = tail_features.shape
    if len(cut_shape) != 4 or cut_shape[:2] != (len(tails), layers) or cut_shape[3] != width:
        raise RdError(f"{path}: tail_features of shape {cut_shape} for {len(tails)} tails")
    heads, tail_heads = {}, {}
    for head in manifest.heads:
        rows = arrays.get(f"head {head.name}")
        cut = arrays.get(f"tail_head {head.name}", np.zeros((len(tails), 0, head.columns), head.dtype))
        if rows is None or rows.shape != (frames_for(len(wave)), head.columns):
            shape = "missing" if rows is None else rows.shape
            raise RdError(f"{path}: head {head.name} is {shape}, ({frames_for(len(wave))}, {head.columns}) is needed")
        if cut.ndim != 3 or cut.shape[0] != len(tails) or cut.shape[2] != head.columns:
            raise RdError(f"{path}: tail_head {head.name} of shape {cut.shape} for {len(tails)} tails")
        heads[head.name], tail_heads[head.name] = rows, cut
    switches = _switches(path, manifest, arrays, len(wave))
    return Expected(wave, features, tails, tail_features, heads, tail_heads, *switches)


def _switches(
    path: Path, manifest: Manifest, arrays: dict[str, np.ndarray], samples: int
) -> tuple[tuple[int, ...], np.ndarray, dict[str, np.ndarray]]:
    """(sizes of steps, features, output of each head) of a stream that changes its chunk size; empty without sizes."""
    frames, layers, width = frames_for(samples), len(manifest.layers), manifest.feature_width
    chunks = arrays.get("switch_chunks")
    if len(manifest.chunk_choices) < 2 or chunks is None:
        return (), np.zeros((layers, 0, width), np.float32), {}
    if chunks.ndim != 1 or chunks.dtype.kind not in "iu" or not set(chunks.tolist()) <= set(manifest.chunk_choices):
        raise RdError(f"{path}: switch_chunks are not sizes of {', '.join(map(str, manifest.chunk_choices))} frames")
    features, heads = arrays.get("switch_features"), {}
    if features is None or features.shape != (layers, frames, width):
        shape = "missing" if features is None else features.shape
        raise RdError(f"{path}: switch_features is {shape}, ({layers}, {frames}, {width}) is needed")
    for head in manifest.heads:
        rows = arrays.get(f"switch_head {head.name}")
        if rows is None or rows.shape != (frames, head.columns):
            shape = "missing" if rows is None else rows.shape
            raise RdError(f"{path}: switch_head {head.name} is {shape}, ({frames}, {head.columns}) is needed")
        heads[head.name] = rows
    return tuple(map(int, chunks)), features, heads


def run_selftest(encoder: Encoder) -> SelfTest:
    """Run the recording and compare features and heads within the bounds that the manifest states."""
    expected, views = read_expected(encoder.bundle), output_views(encoder.manifest)
    frames = encoder.frames(expected.wave, SAMPLE_RATE_HZ)
    results = [
        difference(view.compared(view.rows([frames])), view.compared(view.expected(expected)[0])) for view in views
    ]
    passed = all(result.within(view.bound) for view, result in zip(views, results, strict=True))
    heads = {view.name: result for view, result in zip(views, results, strict=True) if view.head is not None}
    return SelfTest(passed, results[0], views[0].bound, heads)


def _load(path: Path) -> dict[str, np.ndarray]:
    arrays = read_npz(path)
    for name in ("wave", "features"):
        if name not in arrays:
            raise RdError(f"{path}: array {name!r} is missing; found {', '.join(sorted(arrays)) or 'none'}")
        if arrays[name].dtype.kind != "f":
            raise RdError(f"{path}: array {name!r} is {arrays[name].dtype}, floats are needed")
    if arrays["wave"].ndim != 1:
        raise RdError(f"{path}: wave of shape {arrays['wave'].shape}, (samples,) is needed")
    return arrays
