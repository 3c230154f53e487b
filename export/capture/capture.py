"""Student -> a module with named tensors in and out, ready to be traced by any target.

Shape legend: B streams, T samples, N exported layers, F frames, C chunk frames, W feature width, L cached frames,
R look-ahead, H heads, D width of a head, E encoder width, K taps of the positional convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from reuse_distill.export.capture.contract_text import input_contract
from reuse_distill.export.capture.exported_layers import TaskOutputs, depth_of, layer_numbers, with_tasks
from reuse_distill.export.capture.simplify import prepared
from reuse_distill.export.capture.sliding_window import CapturedWindow, geometry_of
from reuse_distill.export.spec import ExportSpec, SlidingWindow, Streaming, WindowContext, feature_width
from reuse_distill.runtime.bundle_format.input_contract import InputContract
from reuse_distill.runtime.bundle_format.manifest import Geometry, State
from reuse_distill.runtime.bundle_format.manifest import Tensor as Port
from reuse_distill.runtime.bundle_format.stepspec import CHUNK_AXIS, WINDOW_AXIS
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, samples_for
from reuse_distill.student import ChunkContext, Student, StudentConfig, StudentOutput
from reuse_distill.student.step import StepOutput, StreamState, initial_state, step, step_rows
from torch import Tensor, nn


@dataclass(frozen=True)
class Capture:
    """What a target needs: the module, example inputs, and what every tensor is."""

    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[State, ...]
    geometry: Geometry
    contract: InputContract = field(default_factory=InputContract)
    dynamic_axes: dict[str, dict[int, str]] = field(default_factory=dict)  # input name -> axis -> symbol
    tasks: TaskOutputs | None = None  # heads on what ``module`` gives
    chunks: tuple[int, ...] = ()  # sizes that a step may have; none: only the geometry's

    def whole(self, module: nn.Module | None = None) -> nn.Module:
        """``module`` (a target's own form of it) with the outputs of heads around it, where there are any."""
        mode = "streaming" if self.states else "window" if len(self.inputs) > 1 else "offline"
        return with_tasks(self.module if module is None else module, self.tasks, mode)

    @property
    def student(self) -> Student:
        """The student inside, simplified, with the exported layers only."""
        module: Any = self.module
        student: Student = module.student
        return student

    def example_of(self, chunk: int) -> tuple[Tensor, ...]:
        """Inputs of a step of ``chunk`` frames."""
        batch = self.example[0].shape[0]
        return (torch.zeros(batch, samples_for(chunk)), torch.ones(batch, chunk), *self.example[2:])

    @property
    def epsilon(self) -> float | None:
        """What is added to the variance where samples are normalised per utterance; None: they are not."""
        return self.contract.level_epsilon or None

    @property
    def input_names(self) -> list[str]:
        return [port.name for port in self.inputs] + [state.input for state in self.states]

    @property
    def output_names(self) -> list[str]:
        return [port.name for port in self.outputs] + [state.output for state in self.states]


def capture(student: Student, spec: ExportSpec) -> Capture:
    """The capture for ``spec.mode``; raises RdError where the student cannot run that way.

    For ``window`` the student comes with calibrated statistics (``sliding_window.calibrated``).
    """
    if student.config.hop_samples != HOP_SAMPLES:
        raise RdError(
            f"this encoder gives a frame every {student.config.hop_samples} samples, artifacts one every {HOP_SAMPLES}",
            hint="export a checkpoint with frames of 20 ms; as a teacher, frames of 10 ms are averaged in pairs",
        )
    ready = prepared(student, depth_of(student.config, spec.layers, spec.features))
    captured = _captured(ready, spec)
    return replace(captured, contract=input_contract(student.config, spec, captured.geometry))


def _captured(ready: Student, spec: ExportSpec) -> Capture:
    if isinstance(spec.mode, SlidingWindow):
        return _window(ready, spec, spec.mode.context)
    if isinstance(spec.mode, Streaming):
        return _streaming(ready, spec, spec.mode)
    return _offline(ready, spec)


class CapturedUtterance(nn.Module):
    """wave [1, T] -> features [1, N, F, W]."""

    def __init__(self, student: Student, layers: Sequence[int], features: str) -> None:
        super().__init__()
        self.student, self.layers, self.features = student, tuple(layers), features

    def forward(self, wave: Tensor) -> Tensor:
        output = self.student(wave)
        return _stacked(self.student.config, output, self.layers, self.features)


class CapturedStep(nn.Module):
    """(samples, fresh, states…) -> (features [B, N, C, W], state outputs…), tensors in manifest order."""

    def __init__(
        self, student: Student, layers: Sequence[int], features: str, state: StreamState, *, whole: bool = False
    ) -> None:
        super().__init__()
        self.student, self.layers, self.features = student, tuple(layers), features
        self.template, self.advance = state, step if whole else step_rows

    def forward(self, samples: Tensor, fresh: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        output, rows = self.advance(self.student, samples, fresh, self._unflatten(states))
        stacked = _stacked(self.student.config, output, self.layers, self.features)
        optional = [rows.position_valid] if self.template.position_valid.shape[1] else []
        caches = [rows.valid, *rows.keys, *rows.values] if self.template.valid.shape[1] else []
        audio = [rows.audio] if self.template.audio.shape[1] else []
        return (stacked, rows.position, *optional, *caches, *audio)

    def _unflatten(self, states: Sequence[Tensor]) -> StreamState:
        rest = list(states)
        empty = self.template
        position = rest.pop(0)
        position_valid = rest.pop(0) if empty.position_valid.shape[1] else empty.position_valid
        audio = rest.pop() if empty.audio.shape[1] else empty.audio
        if not empty.valid.shape[1]:
            return StreamState(position, position_valid, empty.valid, empty.keys, empty.values, audio)
        valid, computing = rest.pop(0), len(empty.keys)
        return StreamState(position, position_valid, valid, rest[:computing], rest[computing:], audio)


def _stacked(config: StudentConfig, output: StudentOutput | StepOutput, layers: Sequence[int], features: str) -> Tensor:
    features_of = output.projections if features == "heads" else output.layers
    by_number = dict(zip(layer_numbers(config, features), features_of, strict=True))
    if isinstance(output, StudentOutput):
        by_number[0] = output.encoder_input  # what layer 1 sees
    return torch.stack([by_number[number] for number in layers], dim=1)


def _offline(student: Student, spec: ExportSpec) -> Capture:
    width = feature_width(spec.features, student.config)
    return Capture(
        module=CapturedUtterance(student, spec.layers, spec.features),
        example=(torch.zeros(1, 32_000),),
        inputs=(Port("wave", "float32", (1, "T")),),
        outputs=output_ports(spec, 1, "F", width),
        states=(),
        geometry=Geometry(step_frames=student.config.time_reduction),
        dynamic_axes={"wave": {1: "T"}},
        tasks=task_outputs(spec),
    )


def _window(student: Student, spec: ExportSpec, window: WindowContext) -> Capture:
    samples, width = samples_for(window.frames), feature_width(spec.features, student.config)
    return Capture(
        module=CapturedWindow(student, window, spec.layers, spec.features),
        example=(torch.zeros(1, samples), torch.ones(1, window.frames)),
        inputs=(Port("wave", "float32", (1, samples)), Port("frame_valid", "float32", (1, window.frames))),
        outputs=output_ports(spec, 1, window.chunk_frames, width),
        states=(),
        geometry=geometry_of(window, student.config.time_reduction),
        tasks=task_outputs(spec),
    )


def _streaming(student: Student, spec: ExportSpec, mode: Streaming) -> Capture:
    config, context, chunk = student.config, mode.context, mode.context.chunk_frames
    batch: int | str = "B" if mode.batch is None else mode.batch
    example_batch = mode.batch or 2
    state = initial_state(config, context, batch=example_batch, dtype=torch.float32)
    whole = mode.states == "whole"
    states = step_states(config, context, batch, whole=whole)
    frames: int | str = CHUNK_AXIS if mode.chunks else chunk
    window: int | str = WINDOW_AXIS if mode.chunks else samples_for(chunk)
    fresh = torch.ones(example_batch, chunk)
    samples = torch.zeros(example_batch, samples_for(chunk))
    width = feature_width(spec.features, config)
    symbolic = ["samples", "fresh", *(s.input for s in states)] if mode.batch is None else []
    return Capture(
        module=CapturedStep(student, spec.layers, spec.features, state, whole=whole),
        example=(samples, fresh, *_flatten(state)),
        inputs=(
            Port("samples", "float32", (batch, window)),
            Port("fresh", "float32", (batch, frames)),
        ),
        outputs=output_ports(spec, batch, frames, width),
        states=states,
        geometry=Geometry(chunk, config.lookahead_frames, context.left_frames),
        dynamic_axes={name: {0: "B"} for name in symbolic},
        chunks=mode.chunks,
        tasks=task_outputs(spec),
    )


def output_ports(spec: ExportSpec, batch: int | str, frames: int | str, width: int) -> tuple[Port, ...]:
    """The features, where they are shown, and every head."""
    features = [Port("features", "float32", (batch, len(spec.shown_layers), frames, width))]
    heads = [Port(o.name, o.dtype, (batch, frames, o.columns)) for o in spec.task_contracts]
    return (*(features if spec.shown_layers else []), *heads)


def task_outputs(spec: ExportSpec) -> TaskOutputs | None:
    """The heads of an export as a module; None without any."""
    if not spec.tasks:
        return None
    return TaskOutputs(spec.layers, spec.shown_layers, [task.module for task in spec.tasks]).eval()


def _flatten(state: StreamState) -> list[Tensor]:
    optional = [state.position_valid] if state.position_valid.shape[1] else []
    caches = [state.valid, *state.keys, *state.values] if state.valid.shape[1] else []
    audio = [state.audio] if state.audio.shape[1] else []
    return [state.position, *optional, *caches, *audio]


def step_states(
    config: StudentConfig, context: ChunkContext, batch: int | str, *, whole: bool = False
) -> tuple[State, ...]:
    """Every state of the step graph in the order of its inputs; reusing layers keep values only.

    ``whole``: the step itself moves the caches on, oldest row first, for hosts that swap buffers.
    """
    left = context.left_frames

    def state(name: str, shape: tuple[int, ...], role: str, **how: Any) -> State:
        return State(name, name, f"{name}_new", "float32", (batch, *shape), role=role, **how)

    replaced: dict[str, Any] = {"update": "replace", "axis": 1, "ordered": True}
    slots: dict[str, Any] = {"update": "replace" if whole else "append", "ordered": whole}
    states = [state("position", (config.position_kernel - 1, config.width), "position", **replaced)]
    if config.lookahead_frames:
        states.append(state("position_valid", (config.lookahead_frames,), "position_validity", **replaced))
    if left:
        caches = {n: (config.shape_of(n).heads, left, config.head_dim) for n in range(1, config.layers + 1)}
        states.append(state("valid", (left,), "validity", axis=1, **slots))
        keys = [n for n in caches if not config.reuses(n)]
        states += [state(f"keys_{n:02d}", caches[n], "keys", axis=2, **slots) for n in keys]
        states += [state(f"values_{n:02d}", cache, "values", axis=2, **slots) for n, cache in caches.items()]
    if config.history_samples:
        states.append(state("audio", (config.history_samples,), "audio", **replaced))
    return tuple(states)
