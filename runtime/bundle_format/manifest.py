"""What a bundle says about itself: ``manifest.json``, written by export, verified and read by runtime.

Shape legend: B batch, T samples, N exported layers, F frames, C chunk frames (as a size) or channels (as an
axis), H heads, D width of a head, L cached frames. Symbolic axes in ``shape`` are strings, fixed ones integers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from reuse_distill.runtime.bundle_format.input_contract import InputContract
from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.runtime.geometry import (
    HOP_MS,
    HOP_SAMPLES,
    RECEPTIVE_FIELD_MS,
    RECEPTIVE_FIELD_SAMPLES,
    SAMPLE_RATE_HZ,
)
from reuse_distill.runtime.tasks.contract import TaskOutput

SCHEMA_VERSION = 1
KINDS = ("offline", "window", "streaming")
STATUSES = ("built", "deferred")
UPDATES = ("replace", "append")
FEATURES = ("heads", "hidden", "none")

AUDIO = "audio"  # the role of a state of samples


@dataclass(frozen=True)
class Tensor:
    """One input or output of the artifact."""

    name: str
    dtype: str  # NumPy name: float32, float16, int64
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class State:
    """One state tensor: zeros at the start of a stream, updated from an output after every step.

    ``replace``: the output is the whole next state. ``append``: the output holds only the new rows along ``axis``;
    the client drops as many of the oldest rows. Where ``ordered`` is false the rows may stand in any order (a
    ring buffer), as long as every unordered state of the bundle uses the same slots.
    """

    name: str
    input: str
    output: str
    dtype: str
    shape: tuple[int | str, ...]
    update: str
    axis: int
    ordered: bool
    role: str  # what it holds: position, position_validity, keys, values, validity, audio

    def __post_init__(self) -> None:
        if self.update not in UPDATES:
            raise RdError(f"manifest: state {self.name}: update {self.update!r} is not one of {', '.join(UPDATES)}")

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Sizes of one stream's part, without the batch."""
        return tuple(int(size) for size in self.shape[1:])

    @property
    def row_bytes(self) -> int:
        """Bytes of one stream's part."""
        import numpy as np  # here only: command lines that read manifests answer at once

        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize


def retyped(states: Sequence[State], dtype: str) -> tuple[State, ...]:
    """The states in another type; samples stay in float32 whatever the precision."""
    return tuple(state if state.role == AUDIO else dataclasses.replace(state, dtype=dtype) for state in states)


@dataclass(frozen=True)
class Geometry:
    """Frames of context. offline: all 0. window: [left | chunk | right]. streaming: chunk C, lookahead R, left L."""

    chunk_frames: int = 0  # C: frames that one call returns
    lookahead_frames: int = 0  # R: frames of look-ahead of the positional convolution (streaming)
    left_frames: int = 0  # left context of the window, or L cached frames per attention layer
    right_frames: int = 0  # right context of the window
    step_frames: int = 1  # frames that the layers see as one (FitHuBERT: 2); features have every frame all the same

    @property
    def worst_latency_ms(self) -> float:
        """Age of the oldest frame of a chunk when the chunk can be computed: 25 + 20 (C-1) + 20 R ms."""
        return RECEPTIVE_FIELD_MS + HOP_MS * (self.chunk_frames - 1 + self.lookahead_frames + self.right_frames)

    @property
    def mean_latency_ms(self) -> float:
        """The same, averaged over the frames of a chunk."""
        return self.worst_latency_ms - HOP_MS * (self.chunk_frames - 1) / 2


@dataclass(frozen=True)
class ReusedMap:
    """One reusing layer of the graph proof."""

    layer: int  # 1-based
    source_layer: int  # the layer whose map it takes
    value_product: str  # node that multiplies the map with the values
    path: tuple[str, ...]  # node types from the value product back to the map: layout and Q/DQ only


@dataclass(frozen=True)
class GraphProof:
    """Established on the finished file, after quantisation: how many maps are computed and who reuses which."""

    layers: int
    computed_maps: int
    softmaxes: int
    reuse_mode: str
    reused: tuple[ReusedMap, ...]
    checked_file: str


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """The whole of ``manifest.json``; see the fields of its parts."""

    kind: str
    target: str
    precision: str
    status: str
    artifact: str
    features: str  # heads (projections, teacher width) | hidden (layer outputs) | none (outputs of tasks only)
    layers: tuple[int, ...]  # exported layers, 1-based, in output order; none where features is none
    feature_width: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    states: tuple[State, ...]
    geometry: Geometry
    files: dict[str, FileEntry]
    source: dict[str, Any]  # checkpoint name, sha256, preset, reuse mode, licence
    tools: dict[str, str]  # versions of everything that took part
    graph_proof: GraphProof | None = None
    parity: dict[str, Any] = field(default_factory=dict)
    quantisation: dict[str, Any] = field(default_factory=dict)
    drift: dict[str, Any] = field(default_factory=dict)
    estimates: dict[str, Any] = field(default_factory=dict)  # MACs and memory, from shapes: nothing was measured
    heads: tuple[TaskOutput, ...] = ()  # outputs of tasks, beside the features or in their place
    input: InputContract = field(default_factory=InputContract)  # what the samples have to be, and what a frame sees
    device: dict[str, Any] | None = None  # set where the artifact is bound to one
    chunk_choices: tuple[
        int, ...
    ] = ()  # sizes C that a step may have, changed between steps; none: only the geometry's
    snapshot: dict[str, Any] = field(default_factory=dict)  # what a stream's state looks like, and where it may move
    approximate: bool = False  # true where streamed features are not the full-utterance features
    sample_rate_hz: int = SAMPLE_RATE_HZ
    hop_samples: int = HOP_SAMPLES
    receptive_field_samples: int = RECEPTIVE_FIELD_SAMPLES
    schema_version: int = SCHEMA_VERSION

    @property
    def artifact_files(self) -> dict[str, FileEntry]:
        """The artifact: one file, OpenVINO's two, or every file of a folder such as an ``.mlpackage``."""
        if self.artifact in self.files:
            beside = f"{self.artifact.removesuffix('.xml')}.bin" if self.artifact.endswith(".xml") else self.artifact
            return {name: self.files[name] for name in (self.artifact, beside) if name in self.files}
        return {name: entry for name, entry in self.files.items() if name.startswith(f"{self.artifact}/")}

    @property
    def artifact_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.artifact_files.values())

    @property
    def artifact_sha256(self) -> str:
        """Of the artifact's file; of a folder's, of the names and hashes of its files."""
        if self.artifact in self.files:
            return self.files[self.artifact].sha256
        listed = "".join(f"{name} {entry.sha256}\n" for name, entry in sorted(self.artifact_files.items()))
        return hashlib.sha256(listed.encode()).hexdigest()

    def head(self, name: str) -> TaskOutput:
        """The head ``name``. Raises RdError where the bundle has none of this name."""
        known = {head.name: head for head in self.heads}
        if name not in known:
            raise RdError(
                f"this bundle has no head {name!r}",
                hint=nearest(name, list(known)) if known else "export it with one: rd-export STUDENT --head HEAD",
            )
        return known[name]

    def _check_heads(self) -> None:
        """Raises RdError where heads and outputs do not fit together, or nothing comes out."""
        if (self.features == "none") != (not self.layers):
            raise RdError(f"manifest: features are {self.features!r} with {len(self.layers)} exported layers")
        if self.features == "none" and not self.heads:
            raise RdError("manifest: neither features nor a head comes out of this bundle")
        outputs = {output.name: output for output in self.outputs}
        if len({head.name for head in self.heads}) != len(self.heads):
            raise RdError("manifest: two heads have the same name")
        for head in self.heads:
            output = outputs.get(head.name)
            if output is None or output.dtype != head.dtype or len(output.shape) != 3:
                raise RdError(f"manifest: head {head.name!r} has no output [B, F, K] of {head.dtype}")
            if output.shape[-1] != head.columns:
                raise RdError(f"manifest: output {head.name!r} has {output.shape[-1]} columns, not {head.columns}")

    def __post_init__(self) -> None:
        for name, value, known in (
            ("kind", self.kind, KINDS),
            ("status", self.status, STATUSES),
            ("features", self.features, FEATURES),
        ):
            if value not in known:
                raise RdError(f"manifest: {name} {value!r} is not one of {', '.join(known)}")
        if self.schema_version != SCHEMA_VERSION:
            raise RdError(
                f"manifest: schema version {self.schema_version}, this runtime reads {SCHEMA_VERSION}",
                hint="export the bundle again, or install the version that wrote it",
            )
        for name, got, want in (
            ("sample_rate_hz", self.sample_rate_hz, SAMPLE_RATE_HZ),
            ("hop_samples", self.hop_samples, HOP_SAMPLES),
            ("receptive_field_samples", self.receptive_field_samples, RECEPTIVE_FIELD_SAMPLES),
        ):
            if got != want:
                raise RdError(f"manifest: {name} is {got}, this runtime supports {want}")
        self._check_heads()
