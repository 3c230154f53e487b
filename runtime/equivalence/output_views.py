"""What comes out of a bundle, one output at a time: its rows, its reference, and the bound that it has to keep.

Features are compared number by number. So are heads of float artifacts; a quantised one's are compared by what they
decide: the unit, or the label with the largest score, of every frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from reuse_distill.runtime.equivalence.parity import stated_bound
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.streaming.framing import Frames
from reuse_distill.runtime.tasks.contract import ROW_KINDS, TaskOutput

if TYPE_CHECKING:
    from reuse_distill.runtime.bundle_format.manifest import Manifest
    from reuse_distill.runtime.equivalence.selftest import Expected

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
