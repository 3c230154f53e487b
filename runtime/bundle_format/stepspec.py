"""The step graph of a streaming bundle as the manifest describes it: sizes, states, and how each state moves."""

from __future__ import annotations

from dataclasses import dataclass, replace

from reuse_distill.runtime.bundle_format.manifest import Geometry, Manifest, State
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, OVERLAP_SAMPLES
from reuse_distill.runtime.tasks.contract import TaskOutput

SAMPLES, FRESH, FEATURES = "samples", "fresh", "features"
# Axes of bundles whose steps may have several chunk sizes C.
CHUNK_AXIS = "C"
WINDOW_AXIS = f"{HOP_SAMPLES}*C + {OVERLAP_SAMPLES}"


@dataclass(frozen=True)
class StepSpec:
    """The step graph of a streaming bundle. Shapes without the batch axis."""

    geometry: Geometry
    layers: int  # N
    width: int  # W
    feature_dtype: str
    heads: tuple[TaskOutput, ...]
    states: tuple[State, ...]
    ring_frames: int  # slots of the unordered states; 0 where there is none
    batch: int | None  # a fixed batch size, or None
    chunk_choices: tuple[int, ...] = ()  # sizes C that a step may have; none: only the geometry's

    @property
    def outputs(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape without the batch axis and type of what a step gives besides states."""
        heads: dict[str, tuple[tuple[int, ...], str]] = {
            head.name: ((self.chunk_frames, head.columns), head.dtype) for head in self.heads
        }
        if not self.layers:
            return heads
        return {FEATURES: ((self.layers, self.chunk_frames, self.width), self.feature_dtype), **heads}

    @property
    def chunk_frames(self) -> int:
        """C"""
        return self.geometry.chunk_frames

    @property
    def lookahead_frames(self) -> int:
        """R"""
        return self.geometry.lookahead_frames

    @property
    def window_samples(self) -> int:
        return HOP_SAMPLES * self.chunk_frames + OVERLAP_SAMPLES

    @property
    def choices(self) -> tuple[int, ...]:
        """Every chunk size that a step may have."""
        return self.chunk_choices or (self.chunk_frames,)

    def of_chunk(self, chunk_frames: int) -> StepSpec:
        """The same step with another of its chunk sizes. Raises RdError for a size that the bundle does not have."""
        if chunk_frames not in self.choices:
            raise RdError(
                f"chunk_frames={chunk_frames}: this bundle has steps of {', '.join(map(str, self.choices))} frames",
                hint="rd-export --mode streaming --chunks 1,4,8,16 makes a bundle with several sizes",
            )
        return replace(self, geometry=replace(self.geometry, chunk_frames=chunk_frames))


def step_spec(manifest: Manifest) -> StepSpec:
    """Read the step graph from the manifest. Raises RdError where it does not keep the contract."""
    inputs = {t.name: t for t in manifest.inputs}
    outputs = {t.name: t for t in manifest.outputs}
    needed = [(SAMPLES, inputs), (FRESH, inputs), *([(FEATURES, outputs)] if manifest.layers else [])]
    for name, known in needed:
        if name not in known:
            raise RdError(f"manifest: a streaming bundle needs {name!r}, found {', '.join(sorted(known))}")
    for name in (SAMPLES, FRESH):
        if inputs[name].dtype != "float32":
            raise RdError(f"manifest: {name} is {inputs[name].dtype}, float32 is needed")
    first = inputs[SAMPLES].shape[0]
    batch = first if isinstance(first, int) else None
    rings = {s.shape[s.axis] for s in manifest.states if s.update == "append" and not s.ordered}
    for state in manifest.states:
        if state.shape[0] != first or not 1 <= state.axis < len(state.shape):
            raise RdError(f"manifest: state {state.name} of shape {state.shape}: axis 0 is the batch, {first!r}")
        if not all(isinstance(d, int) and d > 0 for d in state.shape[1:]):
            raise RdError(f"manifest: state {state.name} of shape {state.shape}: whole numbers above 0 after the batch")
    if len(rings) > 1:
        raise RdError(f"manifest: unordered states of {sorted(map(str, rings))} slots cannot share them")
    geometry = manifest.geometry
    if geometry.chunk_frames < 1 or geometry.lookahead_frames < 0:
        raise RdError(
            f"manifest: chunk of {geometry.chunk_frames} and look-ahead of {geometry.lookahead_frames} frames"
        )
    dial = bool(manifest.chunk_choices)
    chunk: int | str = CHUNK_AXIS if dial else geometry.chunk_frames
    window: int | str = WINDOW_AXIS if dial else HOP_SAMPLES * geometry.chunk_frames + OVERLAP_SAMPLES
    shapes: dict[str, tuple[int | str, ...]] = {
        SAMPLES: (first, window),
        FRESH: (first, chunk),
        FEATURES: (first, len(manifest.layers), chunk, manifest.feature_width),
    }
    for tensor in (*manifest.inputs, *manifest.outputs):
        expected = shapes.get(tensor.name, tensor.shape)
        if tensor.shape != expected:
            raise RdError(
                f"manifest: {tensor.name} has shape {list(tensor.shape)}, chunks of {geometry.chunk_frames} frames and "
                f"{len(manifest.layers)} layers of {manifest.feature_width} need {list(expected)}"
            )
    return StepSpec(
        geometry=geometry,
        layers=len(manifest.layers),
        width=manifest.feature_width,
        feature_dtype=outputs[FEATURES].dtype if manifest.layers else "float32",
        heads=manifest.heads,
        states=manifest.states,
        ring_frames=int(next(iter(rings), 0)),
        batch=batch,
        chunk_choices=manifest.chunk_choices,
    )
