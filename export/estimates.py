"""What one artifact costs, computed from its shapes: MACs per second of audio, and memory. Estimates, not measured."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from reuse_distill.export.capture.exported_layers import depth_of
from reuse_distill.export.spec import ExportSpec, SlidingWindow, Streaming
from reuse_distill.runtime.bundle_format.manifest import State
from reuse_distill.runtime.geometry import HOP_MS, frames_for, samples_for
from reuse_distill.runtime.memory import attention_bytes
from reuse_distill.student import StudentConfig
from reuse_distill.student.config import MEL_HOP_SAMPLES, MEL_WINDOW_SAMPLES
from reuse_distill.student.cost import macs
from reuse_distill.student.front_ends.log_mel import MEL_BINS

UTTERANCE_SECONDS = 10.0  # offline: attention and memory depend on the length
FLOAT_BYTES = 4


def estimates(
    config: StudentConfig,
    spec: ExportSpec,
    states: tuple[State, ...],
    *,
    artifact_bytes: int,
    weight_bytes: int | None = None,
) -> dict[str, Any]:
    """For the manifest: MACs of what is in the artifact alone, layers above the last exported one left out.

    ``weight_bytes``: what the engine holds of the weights, where that is not what the artifact has.
    """
    weights = artifact_bytes if weight_bytes is None else weight_bytes
    frames = call_frames(spec)
    state = sum(state_bytes(one) for one in states)
    activations = activation_bytes(config, frames, attended=_attended(spec))
    return {
        "of": _of(spec),
        "macs_per_second": round(macs_per_second(config, spec)),
        "artifact_bytes": artifact_bytes,
        "weight_bytes": weights,
        "state_bytes": state,
        "activation_bytes": activations,
        "memory_bytes": weights + state + activations,
    }


def macs_per_second(config: StudentConfig, spec: ExportSpec) -> float:
    """MACs for one second of audio. A window computes its context anew for every chunk."""
    depth, frames = depth_of(config, spec.layers, spec.features), call_frames(spec)
    kept = tuple(number for number in config.reuse_layers if number <= depth)
    shallow = dataclasses.replace(
        config, layers=depth, reuse_layers=kept, head_width=None, head_kind="layerwise", head_targets=()
    )
    whole = sum(macs(shallow, frames, attended=_attended(spec)).values())
    new_frames = spec.mode.context.chunk_frames if isinstance(spec.mode, SlidingWindow) else frames
    heads = len(spec.layers) * _head_macs(config) * new_frames if spec.features == "heads" else 0
    return (whole + heads) / (new_frames * HOP_MS / 1000)


def _head_macs(config: StudentConfig) -> int:
    """MACs per frame of one head as it is exported: upsampling is part of its projection, and costs nothing more."""
    inner = config.width**2 if config.head_kind == "split" else 0
    return inner + config.width * (config.head_width or 0)


def call_frames(spec: ExportSpec) -> int:
    """Frames that one call computes: a chunk, a window, or an utterance of 10 s."""
    if isinstance(spec.mode, Streaming):
        return spec.mode.context.chunk_frames
    if isinstance(spec.mode, SlidingWindow):
        return spec.mode.context.frames
    return frames_for(int(UTTERANCE_SECONDS * 16_000))


def activation_bytes(config: StudentConfig, frames: int, *, attended: int | None) -> int:
    """The largest values that exist at once, in float32.

    Input and output of a convolution or of the GELU behind it, or maps of attention.
    """
    frames = config.window_frames or frames
    steps, before = samples_for(frames), 1
    if config.front_end == "mel":
        steps, before = (steps + config.history_samples - MEL_WINDOW_SAMPLES) // MEL_HOP_SAMPLES + 1, MEL_BINS
    elif config.front_end != "conv":
        steps, before = 2 * frames + 2, config.mel_bands
    convolutions = []
    for channels, kernel, stride in config.conv_layers:
        after = (steps - kernel) // stride + 1
        convolutions.append((max(steps * before, after * channels) + after * channels) * FLOAT_BYTES)
        steps, before = after, channels
    queries = -(-frames // config.time_reduction)
    keys = queries if attended is None else attended
    maps = attention_bytes(max(shape.heads for shape in config.layer_shapes), queries) * keys // queries
    feed_forward = frames * (config.width + max(s.ffn_width for s in config.layer_shapes)) * FLOAT_BYTES
    return max(*convolutions, maps, feed_forward)


def state_bytes(state: State) -> int:
    """Of one stream."""
    return int(np.dtype(state.dtype).itemsize * math.prod(n for n in state.shape[1:] if isinstance(n, int)))


def _attended(spec: ExportSpec) -> int | None:
    context = spec.chunk_context
    return None if context is None else context.chunk_frames + context.left_frames


def _of(spec: ExportSpec) -> str:
    if isinstance(spec.mode, Streaming):
        return f"one stream, in steps of {call_frames(spec)} frames"
    if isinstance(spec.mode, SlidingWindow):
        return f"windows of {call_frames(spec)} frames"
    return f"an utterance of {UTTERANCE_SECONDS:g} s"
