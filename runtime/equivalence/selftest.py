"""The recording in a bundle, its expected features, and whether this machine still gives them, output by output.

Features are compared number by number. So are heads of float artifacts; a quantised one's are compared by what they
decide: the unit, or the label with the largest score, of every frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from reuse_distill.runtime.bundle_format.bundle import SELFTEST, Bundle
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.equivalence.parity import Difference, difference, stated_bound
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ, frames_for
from reuse_distill.runtime.streaming.framing import Frames
from reuse_distill.runtime.tasks.contract import ROW_KINDS, TaskOutput
from reuse_distill.runtime.untrusted_input import read_npz

if TYPE_CHECKING:
    from reuse_distill.runtime.bundle_format.manifest import Manifest
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


AGREEMENT = "agreement"  # share of frames with the same decision


@dataclass(frozen=True)
class OutputView:
    """One output of a bundle; ``head`` is None for the features."""

    name: str
    head: TaskOutput | None
    layers: int  # N of the features, 1 of a head
    width: int
    bound: dict[str, float]  # for ``parity.within``, of rows that ``compared`` gives

    def rows(self, parts: Sequence[Frames]) -> np.ndarray:
        """Consecutive frames of a stream as (N, F, W)."""
        if self.head is None:
            features = [part.features.reshape(self.layers, len(part), self.width) for part in parts]
            return np.concatenate([np.zeros((self.layers, 0, self.width), np.float32), *features], axis=1)
        name, dtype = self.head.name, self.head.dtype
        none = np.zeros((0, self.width), dtype)
        return np.concatenate([none, *(part.heads[name] for part in parts)])[np.newaxis]

    def expected(self, expected: Expected) -> tuple[np.ndarray, np.ndarray]:
        """Reference (N, F, W) of the recording, and the last rows (T, N, M, W) of its cuts."""
        if self.head is None:
            return expected.features, expected.tail_features
        return expected.heads[self.name][np.newaxis], expected.tail_heads[self.name][:, np.newaxis]

    def expected_of_switches(self, expected: Expected) -> np.ndarray:
        """Reference (N, F, W) of the stream that changes its chunk size."""
        return expected.switch_features if self.head is None else expected.switch_heads[self.name][np.newaxis]

    def compared(self, rows: np.ndarray) -> np.ndarray:
        """``rows`` (N, F, W) as they are compared: decisions as 0 and 1 where the bound is an agreement."""
        return decisions(self.head, rows) if self.decides and self.head is not None else rows

    @property
    def decides(self) -> bool:
        """Whether decisions are compared, not numbers."""
        return self.head is not None and "max_abs" not in self.bound and self.head.kind not in ROW_KINDS


def decisions(head: TaskOutput, rows: np.ndarray) -> np.ndarray:
    """Rows (..., F, K) -> (..., F, choices), 1 at the unit or label decided for: their mean cosine is an agreement.

    The numbers of a projection or an x-vector's rows decide nothing and stay as they are.
    """
    if head.kind in ROW_KINDS:
        return rows
    chosen = rows[..., 0] if head.kind == "units" else rows.argmax(-1)
    choices = head.size if head.kind == "units" else head.columns
    return (chosen[..., np.newaxis] == np.arange(choices)).astype(np.float32)


def output_views(manifest: Manifest) -> list[OutputView]:
    """The features, where the bundle gives them, and every head. Raises RdError for an output without a bound."""
    views = []
    if manifest.layers:
        bound = stated_bound(manifest.parity)
        views.append(OutputView("features", None, len(manifest.layers), manifest.feature_width, bound))
    for head in manifest.heads:
        views.append(OutputView(head.name, head, 1, head.columns, head_bound(manifest.parity, head)))
    return views


def head_bound(parity: Mapping[str, Any], head: TaskOutput) -> dict[str, float]:
    """The stated bound of a head's rows: an agreement is a mean cosine of decisions."""
    stated = (parity.get("heads") or {}).get(head.name)
    bound = stated.get("bound") if isinstance(stated, dict) else None
    known, where = ("max_abs", "mean_cosine", AGREEMENT), f"manifest: parity.heads.{head.name}.bound"
    if not isinstance(bound, dict) or not bound or set(bound) - set(known):
        raise RdError(f"{where} is {bound!r}, one of {', '.join(known)} is needed")
    if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in bound.values()):
        raise RdError(f"{where} {bound!r} is not a number")
    return {"mean_cosine" if name == AGREEMENT else name: float(value) for name, value in bound.items()}
