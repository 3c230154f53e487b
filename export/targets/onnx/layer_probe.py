"""The hidden features inside a finished ONNX artifact, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.capture.sliding_window import CapturedWindow, windows
from reuse_distill.export.spec import WindowContext
from reuse_distill.runtime.geometry import HOP_SAMPLES, frames_for, samples_for
from reuse_distill.student import StudentConfig


class OnnxSession(Protocol):
    """What a probe asks of an engine: ONNX Runtime's session, or one that answers alike."""

    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs ``names`` for ``inputs``."""

    def get_inputs(self) -> list[Any]:
        """The inputs, each with ``name`` and ``type`` (``tensor(float)``)."""


class LayerProbe:
    """Runs a copy of an artifact that also gives the output of every layer; the artifact itself stays as it is."""

    def __init__(self, session: OnnxSession, names: list[str], capture: Capture) -> None:
        self.session, self.names, self.capture = session, names, capture

    @classmethod
    def of_onnx(cls, artifact: Path, capture: Capture, depth: int) -> LayerProbe:
        """A probe of an ONNX file, by ONNX Runtime on the CPU."""
        import onnxruntime

        model, names = with_layer_outputs(artifact, depth, capture.student.config)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        serialised = model.SerializeToString()
        return cls(
            onnxruntime.InferenceSession(serialised, options, providers=["CPUExecutionProvider"]), names, capture
        )

    def run(self, wave: np.ndarray) -> list[np.ndarray]:
        """Features (F, E) after every layer for one utterance (T,)."""
        if isinstance(self.capture.module, CapturedWindow):
            return self._run_windows(wave, self.capture.module.window)
        if not self.capture.states:
            outputs = self.session.run(self.names, {"wave": self.capture.contract.prepared(wave)[None]})
            return [self._of_frames(layer, 0, frames_for(len(wave))) for layer in outputs]
        chunk, ahead = self.capture.geometry.chunk_frames, self.capture.geometry.lookahead_frames
        frames, first_size = frames_for(len(wave)), self.capture.inputs[0].shape[0]
        batch = first_size if isinstance(first_size, int) else 1  # a fixed batch gets the same stream in every row
        states: dict[str, np.ndarray] = {
            s.input: np.zeros((batch, *map(int, s.shape[1:])), self._dtype(s.input)) for s in self.capture.states
        }
        parts: list[list[np.ndarray]] = []
        for first in range(0, frames + ahead, chunk):
            piece = wave[HOP_SAMPLES * first : HOP_SAMPLES * first + samples_for(chunk)]
            samples = np.tile(np.pad(piece, (0, samples_for(chunk) - len(piece))), (batch, 1))
            fresh = np.tile((np.arange(first, first + chunk) < frames).astype(np.float32), (batch, 1))
            names = [*self.names, *(s.output for s in self.capture.states)]
            outputs = self.session.run(names, {"samples": samples, "fresh": fresh, **states})
            parts.append(outputs[: len(self.names)])
            states = self._advance(states, outputs[len(self.names) :])
        joined = [np.concatenate([part[i][0] for part in parts]).astype(np.float32) for i in range(len(self.names))]
        return [layer[ahead : ahead + frames] for layer in joined]

    def _run_windows(self, wave: np.ndarray, window: WindowContext) -> list[np.ndarray]:
        parts = []
        for placed in windows(wave, window, self.capture.epsilon):
            outputs = self.session.run(self.names, {"wave": placed.wave[None], "frame_valid": placed.valid[None]})
            parts.append([self._of_frames(layer, window.left_frames, placed.kept) for layer in outputs])
        return [np.concatenate(layer) for layer in zip(*parts, strict=True)]

    def _of_frames(self, layer: np.ndarray, first: int, count: int) -> np.ndarray:
        """[1, S, E] -> (``count``, E) from frame ``first`` on; a step stands for each of its frames."""
        frames = np.repeat(layer[0], self.capture.geometry.step_frames, axis=0)
        return frames[first : first + count].astype(np.float32)

    def _dtype(self, name: str) -> type:
        """Of a state as the artifact has it: half precision in an fp16 artifact."""
        kinds = {port.name: port.type for port in self.session.get_inputs()}
        return np.float16 if kinds[name] == "tensor(float16)" else np.float32

    def _advance(self, states: dict[str, np.ndarray], outputs: list[np.ndarray]) -> dict[str, np.ndarray]:
        after = {}
        for state, new in zip(self.capture.states, outputs, strict=True):
            if state.update == "append":
                joined = np.concatenate([states[state.input], new], axis=state.axis)
                start = joined.shape[state.axis] - states[state.input].shape[state.axis]
                new = np.take(joined, range(start, joined.shape[state.axis]), axis=state.axis)
            after[state.input] = new
        return after


def with_layer_outputs(artifact: Path, depth: int, config: StudentConfig) -> tuple[Any, list[str]]:
    """The model with the output of each of its ``depth`` layers as an extra output, and the outputs' names.

    Each layer ends in a LayerNormalization, the second of its two, and the layers' are the last of the graph. Where
    layers norm first, each ends before the first norm of the next one, the last in the encoder's norm if that is there.
    """
    import onnx
    from onnx import helper

    model = onnx.load(str(artifact))
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    if config.norm_first:
        last = [node for node in model.graph.node if node.op_type in ("LayerNormalization", "Add")][-1]
        layers = norms[len(norms) - 2 * depth - config.final_norm :]
        names = [*(node.input[0] for node in layers[2 : 2 * depth : 2]), last.output[0]]
    else:
        names = [node.output[0] for node in norms[len(norms) - 2 * depth :][1::2]]
    present = {value.name for value in model.graph.output}
    for name in names:
        if name not in present:
            model.graph.output.append(helper.make_empty_tensor_value_info(name))
    return model, names
