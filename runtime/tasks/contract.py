"""The contract of one head's output: what its numbers are, and all that a client needs to make results of them.

Every output has the shape [B, F, K], one row per frame, frame i of the features. Kinds:

- ``projection``: K numbers, float.
- ``units``: K = 1, the number of the nearest centroid, int32, 0 .. ``size`` - 1.
- ``ctc``: log-probabilities of K labels, of which ``blank`` stands for nothing.
- ``classify``: K logits; the label of an utterance is the largest of their mean over time.
- ``spot``: probabilities of 1 + keywords * ``parts`` classes: the first is everything else, then ``parts`` consecutive
  parts of each keyword. See ``runtime.tasks.spotting`` for the score that they make.
- ``xvector``: K numbers, from which ``runtime.tasks.xvector`` makes one vector for the recording, with the arrays in
  the bundle's file ``weights``.

From them decoders make events. Light: imports no NumPy.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reuse_distill.runtime.errors import RdError, nearest

if TYPE_CHECKING:
    import numpy as np

TRAINED_KINDS = ("projection", "units", "ctc", "classify", "spot")  # by rd-distill head
TASK_KINDS = (*TRAINED_KINDS, "xvector")
ROW_KINDS = ("projection", "xvector")  # whose numbers decide nothing frame by frame
LABELLED = ("ctc", "classify", "spot")
MOST_OUTPUTS = 65_536
MOST_PARTS, MOST_FRAMES, LONGEST_LABEL = 16, 3000, 200
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_FILE = re.compile(r"[a-z][a-z0-9_]{0,39}\.npz")
_TAKEN = ("features", "wave", "samples", "fresh", "frame_valid")


@dataclass(frozen=True)
class TaskOutput:
    """One output of a head. Raises RdError where its parts do not fit together."""

    name: str  # of the output tensor, and of the head on the command line
    kind: str
    # Width of a projection or an x-vector's rows, number of units, labels of ctc or classify, keywords of a spot head.
    size: int
    labels: tuple[str, ...] = ()  # in the order of the output's axis; keywords of a spot head
    blank: int | None = None  # ctc: the label that stands for nothing
    delimiter: str = ""  # ctc: the label between words; empty: labels are no letters of words
    parts: int = 1  # spot: consecutive parts that a keyword is cut into
    thresholds: tuple[float, ...] = ()  # spot: a keyword is detected from this score on
    smooth_frames: int = 1  # spot: probabilities are means over so many frames
    search_frames: int = 1  # spot: the parts of a keyword lie within so many frames
    refractory_s: float = 0.0  # spot: after a detection the keyword is not detected again for so long
    window_s: float | None = None  # classify: mean over the newest so many seconds; None: since the start
    rate_hz: float = 50.0  # rows per second
    weights: str = ""  # xvector: file of the bundle with what the decoder computes with
    source: dict[str, Any] = field(default_factory=dict)  # sha256 of the head's weights, its data and licence

    def __post_init__(self) -> None:
        where = f"head {self.name!r}"
        if not _NAME.fullmatch(self.name) or self.name in _TAKEN:
            raise RdError(
                f"{where}: not a usable name", hint="small letters, digits and _, such as keywords; not features"
            )
        if self.kind not in TASK_KINDS:
            raise RdError(f"{where}: kind {self.kind!r} is unknown", hint=nearest(self.kind, TASK_KINDS))
        if not 1 <= self.size <= MOST_OUTPUTS:
            raise RdError(f"{where}: size {self.size} is outside 1..{MOST_OUTPUTS}")
        if not (math.isfinite(self.rate_hz) and self.rate_hz > 0):
            raise RdError(f"{where}: rate_hz {self.rate_hz} is not above 0")
        self._check_labels(where)
        self._check_spot(where)
        if not (_FILE.fullmatch(self.weights) if self.kind == "xvector" else self.weights == ""):
            raise RdError(f"{where}: weights {self.weights!r} of kind {self.kind}", hint="NAME.npz, for xvector alone")
        if self.window_s is not None and not (math.isfinite(self.window_s) and self.window_s > 0):
            raise RdError(f"{where}: window_s {self.window_s} is not above 0")

    @property
    def columns(self) -> int:
        """K: numbers per frame."""
        if self.kind == "spot":
            return 1 + self.size * self.parts
        return 1 if self.kind == "units" else self.size

    @property
    def dtype(self) -> str:
        return "int32" if self.kind == "units" else "float32"

    def _check_labels(self, where: str) -> None:
        if self.kind in LABELLED:
            if len(self.labels) != self.size:
                raise RdError(f"{where}: {len(self.labels)} labels for {self.size} {self.kind} outputs")
            if len(set(self.labels)) != len(self.labels):
                raise RdError(f"{where}: a label appears twice among {len(self.labels)}")
            if any(len(label) > LONGEST_LABEL for label in self.labels):
                raise RdError(f"{where}: a label is longer than {LONGEST_LABEL} characters")
        elif self.labels:
            raise RdError(f"{where}: labels are for {', '.join(LABELLED)}, this head is {self.kind}")
        if self.kind == "ctc":
            if self.blank is None or not 0 <= self.blank < self.size:
                raise RdError(
                    f"{where}: blank {self.blank} is none of the {self.size} labels",
                    hint="a CTC head needs a blank label, such as <pad>",
                )
        elif self.blank is not None:
            raise RdError(f"{where}: blank is for ctc, this head is {self.kind}")
        if self.delimiter and self.delimiter not in self.labels:
            raise RdError(f"{where}: the delimiter {self.delimiter!r} is not among the labels")

    def _check_spot(self, where: str) -> None:
        if self.kind != "spot":
            if self.thresholds or self.parts != 1:
                raise RdError(f"{where}: thresholds and parts are for spot, this head is {self.kind}")
            return
        if len(self.thresholds) != self.size or not all(0 <= t <= 1 for t in self.thresholds):
            raise RdError(f"{where}: {len(self.thresholds)} thresholds within 0..1 for {self.size} keywords")
        for name, value, most in (
            ("parts", self.parts, MOST_PARTS),
            ("smooth_frames", self.smooth_frames, MOST_FRAMES),
            ("search_frames", self.search_frames, MOST_FRAMES),
        ):
            if not 1 <= value <= most:
                raise RdError(f"{where}: {name} {value} is outside 1..{most}")
        if not 0 <= self.refractory_s <= 60:
            raise RdError(f"{where}: refractory_s {self.refractory_s} is outside 0..60")


@dataclass(frozen=True)
class TaskEvent:
    """One result: a word, a unit, a label or a vector, and the stretch of audio that it is about."""

    label: str
    start_s: float
    end_s: float
    score: float | None = None  # within 0..1: a probability, or what the kind makes of several
    vector: tuple[float, ...] = ()  # of an x-vector

    def __str__(self) -> str:
        score = "" if self.score is None else f"  {self.score:.2f}"
        numbers = f"  {' '.join(f'{number:.4g}' for number in self.vector)}" if self.vector else ""
        return f"{self.start_s:8.2f} {self.end_s:8.2f}  {self.label}{score}{numbers}"


def check_rows(output: TaskOutput, rows: np.ndarray) -> np.ndarray:
    """``rows`` itself, (n, K). Raises RdError for another width."""
    if rows.ndim != 2 or rows.shape[1] != output.columns:
        raise RdError(f"head {output.name!r}: rows of shape {rows.shape}, (frames, {output.columns}) is needed")
    return rows
