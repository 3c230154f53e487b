"""What a client does around a package: windows, steps, states carried by name.

The same loop drives the evaluator here and real predictions on a Mac; it follows the manifest's contract alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.capture.sliding_window import CapturedWindow, windows
from reuse_distill.export.spec import WindowContext
from reuse_distill.runtime.bundle_format.manifest import State
from reuse_distill.runtime.geometry import HOP_SAMPLES, frames_for, samples_for


class CoreMLSession(Protocol):
    """One stream of a package: keeps the states that the engine holds itself."""

    def run(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
        """Outputs by name."""


def utterance(
    session: CoreMLSession, captured: Capture, states: Sequence[State], wave: np.ndarray, names: Sequence[str]
) -> list[np.ndarray]:
    """The values ``names`` of the utterance ``wave`` (T,), their frames joined, as float32.

    Frames (of the call, or of its chunk) stand at the last axis but one. Values from inside the layers of a student
    that sees several frames as one have steps there: each is given once for every frame.
    """
    if isinstance(captured.module, CapturedWindow):
        return _windows(session, captured, captured.module.window, wave, names)
    if not captured.states:
        outputs = session.run({"wave": captured.contract.prepared(wave)[None]}, names)
        return [_of_frames(outputs[name], name, captured, 0, frames_for(len(wave))) for name in names]
    return _stream(session, captured, states, wave, names)


def _windows(
    session: CoreMLSession, captured: Capture, window: WindowContext, wave: np.ndarray, names: Sequence[str]
) -> list[np.ndarray]:
    parts = []
    for placed in windows(wave, window, captured.epsilon):
        outputs = session.run({"wave": placed.wave[None], "frame_valid": placed.valid[None]}, names)
        parts.append([_of_frames(outputs[name], name, captured, window.left_frames, placed.kept) for name in names])
    return [np.concatenate(rows, axis=-2) for rows in zip(*parts, strict=True)]


def _of_frames(value: np.ndarray, name: str, captured: Capture, first: int, count: int) -> np.ndarray:
    """[1, ..., S, E] -> (..., ``count``, E): what is exported begins with the chunk, other values with the window."""
    if name in captured.output_names:
        return value[0, ..., :count, :].astype(np.float32)
    frames = np.repeat(value[0], captured.geometry.step_frames, axis=-2)
    return frames[..., first : first + count, :].astype(np.float32)


def _stream(
    session: CoreMLSession, captured: Capture, states: Sequence[State], wave: np.ndarray, names: Sequence[str]
) -> list[np.ndarray]:
    ahead, frames = captured.geometry.lookahead_frames, frames_for(len(wave))
    batch = captured.example[0].shape[0]  # of a package for several streams the first is looked at, all get the same
    carried = [state for state in states if state.output != state.input]
    held = {state.input: np.zeros(tuple(map(int, state.shape)), state.dtype) for state in carried}
    parts = []
    for samples, fresh in steps(wave, chunk=captured.geometry.chunk_frames, ahead=ahead):
        alike = {"samples": np.repeat(samples, batch, axis=0), "fresh": np.repeat(fresh, batch, axis=0)}
        outputs = session.run({**alike, **held}, [*names, *(s.output for s in carried)])
        held = {state.input: advanced(state, held[state.input], outputs[state.output]) for state in carried}
        parts.append([outputs[name][0].astype(np.float32) for name in names])
    joined = [np.concatenate(rows, axis=-2) for rows in zip(*parts, strict=True)]
    return [rows[..., ahead : ahead + frames, :] for rows in joined]


def steps(wave: np.ndarray, *, chunk: int, ahead: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(samples [1, 320 C + 80], fresh [1, C]) of every step of ``wave`` (T,), the last ones without fresh frames."""
    frames = frames_for(len(wave))
    for first in range(0, frames + ahead, chunk):
        piece = wave[HOP_SAMPLES * first : HOP_SAMPLES * first + samples_for(chunk)]
        samples = np.pad(piece, (0, samples_for(chunk) - len(piece)))[None]
        yield samples, (np.arange(first, first + chunk) < frames).astype(np.float32)[None]


def advanced(state: State, before: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The state after a step, from its output ``new``."""
    if state.update == "replace":
        return new
    size = before.shape[state.axis]
    joined = np.concatenate([before, new], axis=state.axis)
    return np.take(joined, range(joined.shape[state.axis] - size, joined.shape[state.axis]), axis=state.axis)
