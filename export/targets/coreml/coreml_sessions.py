"""What a client does around a package, and what runs it: the evaluator anywhere, Core ML itself on a Mac.

One loop of windows or steps, states carried by name, drives both; it follows the manifest's contract alone. The backend
puts a package behind the runtime's own streams. It is slow (NumPy, operation by operation), on any machine: it shows
that a stream can continue in a package where another engine left it, and the other way round, with the bytes of
``Stream.snapshot`` and nothing else.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.capture.sliding_window import CapturedWindow, windows
from reuse_distill.export.spec import WindowContext
from reuse_distill.export.targets import Job
from reuse_distill.export.targets.coreml.evaluator import Evaluator
from reuse_distill.export.targets.coreml.mil_program import MilType
from reuse_distill.export.targets.vendor_packages import coremltools, first_line, quiet
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import Bundle, read_bundle
from reuse_distill.runtime.bundle_format.manifest import State
from reuse_distill.runtime.engines.backend import Port
from reuse_distill.runtime.engines.engine_choice import check_ports
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, frames_for, samples_for
from reuse_distill.runtime.streaming.state_layout import engine_keeps_states


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


def outputs_of(
    session: CoreMLSession, job: Job, states: Sequence[State], wave: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features (N, F, W) of the utterance ``wave`` (T,), N is 0 without them, and the output (F, K) of every head."""
    shown, heads = ["features"] * bool(job.spec.shown_layers), [output.name for output in job.spec.task_contracts]
    rows = utterance(session, job.captured, states, wave, [*shown, *heads])
    features = rows.pop(0) if shown else np.zeros((0, frames_for(len(wave)), 0), np.float32)
    return features, dict(zip(heads, rows, strict=True))


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


PROVIDER = "evaluator"


class EvaluatorSession:
    """The NumPy evaluator, with the states that the package keeps itself."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator, self.states = evaluator, evaluator.new_states()

    def run(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
        outputs = self.evaluator.run(inputs, states=self.states, also=names)
        return {name: outputs[name] for name in names}


class PredictionSession:
    """Core ML's own prediction; needs a Mac."""

    def __init__(self, package: Path) -> None:
        if not can_predict():
            raise RdError(
                f"Core ML predicts on a Mac only, this is {platform.system()}",
                hint="the evaluator gives the package's numbers on any machine",
            )
        try:
            with quiet():
                self.model: Any = coremltools().models.MLModel(str(package))
                self.state: Any = self.model.make_state() if self.model.get_spec().description.state else None
        except Exception as error:
            raise RdError(f"{package.name}: Core ML could not load it: {first_line(error)}") from error

    def run(self, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
        outputs = self.model.predict(dict(inputs), state=self.state) if self.state else self.model.predict(dict(inputs))
        return {name: np.asarray(outputs[name]) for name in names}


def can_predict() -> bool:
    """Whether this machine is a Mac."""
    return platform.system() == "Darwin"


class EvaluatorBackend:
    """``runtime.engines.backend.Backend`` of a package whose states are inputs and outputs."""

    def __init__(self, bundle: Bundle) -> None:
        self._evaluator = Evaluator.load(bundle.artifact)
        program = self._evaluator.program
        results = {name: kind for one in program.operations for name, kind in zip(one.outputs, one.types, strict=True)}
        self.inputs = {name: _port(name, kind) for name, kind in program.inputs.items()}
        self.outputs = {name: _port(name, results[name]) for name in program.outputs}
        self.provider = PROVIDER
        self.placement: Mapping[str, int] | None = None
        self.versions: Mapping[str, str] = {"numpy": np.__version__}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See ``Backend``."""
        results = self._evaluator.run(inputs)
        return {name: np.ascontiguousarray(results[name]) for name in self.outputs}

    def bind(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """See ``Backend``."""

        def step() -> None:
            for name, value in self.run(inputs).items():
                outputs[name][...] = value

        return step


def _port(name: str, kind: MilType) -> Port:
    return Port(name, np.dtype(kind.dtype).name, tuple("?" if size < 0 else size for size in kind.shape))


def evaluated(path: str | os.PathLike[str]) -> Encoder:
    """An encoder of the bundle at ``path`` that the evaluator runs.

    Raises RdError for another target or kind, and where Core ML keeps the states itself.
    """
    bundle = read_bundle(path)
    manifest = bundle.manifest
    if manifest.target != "coreml" or manifest.kind != "streaming":
        raise RdError(f"{bundle.path}: {manifest.kind} for {manifest.target}, a stream for coreml is needed")
    if engine_keeps_states(manifest):
        raise RdError(
            f"{bundle.path}: Core ML keeps its states itself, so that they cannot be moved",
            hint="export it with --states tensors",
        )
    backend = EvaluatorBackend(bundle)
    check_ports(bundle, backend)
    return Encoder(bundle, provider=PROVIDER, threads=1, backend=backend)
