"""Parity of artifacts whose steps have several chunk sizes: every size by itself, and streams that switch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from reuse_distill.export.parity.reference import of_switches, reference_features
from reuse_distill.export.parity.slices import worst_figures
from reuse_distill.export.spec import ExportSpec, Streaming
from reuse_distill.export.targets import Job, Target, of_layers
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.equivalence.parity import Difference, difference
from reuse_distill.runtime.geometry import frames_for
from reuse_distill.runtime.streaming.dial import in_sequence
from reuse_distill.student import Student

SEQUENCES = 3  # random sequences of sizes for every recording


def measure_dial(target: Target, job: Job, student: Student, clips: Sequence[np.ndarray]) -> dict[str, Any]:
    """``parity.chunks`` and ``parity.switches`` of the manifest; nothing where steps have one size or give no features.

    The reference of a switching stream is one forward in torch float32 with the same sequence of chunks.
    """
    mode = job.spec.mode
    if not isinstance(mode, Streaming) or not mode.chunks or not job.spec.shown_layers:
        return {}
    encoder = target.encoder(job.folder, job)
    of_sizes = [
        {
            "chunk_frames": size,
            **worst_figures([_compared(encoder, _of_size(job.spec, mode, size), student, c) for c in clips]),
        }
        for size in mode.chunks
    ]
    if len(mode.chunks) < 2:
        return {"chunks": of_sizes}
    lookahead = student.config.lookahead_frames
    switching = [
        (of_switches(job.spec, frames_for(len(clip)), lookahead, seed=seed), clip)
        for clip in clips
        for seed in range(SEQUENCES)
    ]
    switches = sum(np.count_nonzero(np.diff(spec.schedule.chunks)) for spec, _ in switching if spec.schedule)
    figures = worst_figures([_compared(encoder, spec, student, clip) for spec, clip in switching])
    return {"chunks": of_sizes, "switches": {"streams": len(switching), "switches": int(switches), **figures}}


def _of_size(spec: ExportSpec, mode: Streaming, size: int) -> ExportSpec:
    context = dataclasses.replace(mode.context, chunk_frames=size)
    return dataclasses.replace(spec, mode=dataclasses.replace(mode, context=context))


def _compared(encoder: Encoder, spec: ExportSpec, student: Student, clip: np.ndarray) -> Difference:
    stream = encoder.stream()
    assert isinstance(spec.mode, Streaming)  # noqa: S101  (measure_dial has seen to it)
    stream.policy = in_sequence(spec.schedule.chunks if spec.schedule else (spec.mode.context.chunk_frames,))
    features = encoder.join([*stream.push(clip), *stream.finish()])
    return difference(of_layers(features, spec), reference_features(student, spec, clip))
