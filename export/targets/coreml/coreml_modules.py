"""The captured modules as the neural engine likes them: rank <= 4, no asymmetric pad, no booleans, states on request.

Shape legend: B streams, T samples, N exported layers, F frames, C channels, W feature width, E encoder width.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from reuse_distill.export.capture.capture import Capture, CapturedUtterance
from reuse_distill.export.capture.exported_layers import exported, into_layers
from reuse_distill.export.capture.sliding_window import CapturedWindow, chunk_of
from reuse_distill.runtime.bundle_format.manifest import State
from reuse_distill.student import Student
from reuse_distill.student.front_ends.frontend import FeatureExtractor, TimeNorm, float_step_mask
from reuse_distill.student.position import ConvStack, NormedConv
from torch import Tensor, nn


def friendly(captured: Capture) -> nn.Module:
    """The same function as ``captured.module`` in operations that Core ML converts well."""
    module = captured.module
    if isinstance(module, CapturedUtterance):
        return OfflineModule(module.student, module.layers, module.features).eval()
    if isinstance(module, CapturedWindow):
        return WindowModule(module).eval()
    return module.eval()


class OfflineModule(nn.Module):
    """wave [1, T] -> features [1, N, F, W]."""

    def __init__(self, student: Student, layers: Sequence[int], features: str) -> None:
        super().__init__()
        self.student, self.layers, self.features = student, tuple(layers), features

    def forward(self, wave: Tensor) -> Tensor:
        x = self.student.frames(wave)[1]
        entering, *hidden = encode(self.student, x, None)
        features = exported(self.student, hidden, self.layers, self.features, frames=x.shape[1], entering=entering)
        return torch.stack(features, dim=1)


class WindowModule(nn.Module):
    """(wave [1, 320 F + 80], frame_valid [1, F]) -> chunk features [1, N, chunk, W]."""

    def __init__(self, window: CapturedWindow) -> None:
        super().__init__()
        self.student = copy.deepcopy(window.student)
        self.student.feature_extractor = FloatMaskFrontEnd(self.student.feature_extractor)
        self.layers, self.features, self.window = window.layers, window.features, window.window

    def forward(self, wave: Tensor, frame_valid: Tensor) -> Tensor:
        x = self.student.frames(wave, frame_valid=frame_valid)[1] * frame_valid[..., None]
        every = encode(self.student, x, frame_valid)
        entering, *hidden = chunk_of(every, self.window, self.student.config.time_reduction)
        features = exported(self.student, hidden, self.layers, self.features, frames=None, entering=entering)
        return torch.stack(features, dim=1)


def encode(student: Student, x: Tensor, frame_valid: Tensor | None) -> list[Tensor]:
    """What layer 1 sees and the output [1, S, E] of every layer for the frames ``x`` [1, F, E].

    ``frame_valid`` [1, F] is 1 where a frame exists; None: all do.
    """
    x, bias = into_layers(student, positioned(student, x, frame_valid), frame_valid)
    return [x, *student.encoder.as_features(student.encoder.run(x, bias))]


def positioned(student: Student, x: Tensor, frame_valid: Tensor | None) -> Tensor:
    """Frames ``x`` [1, F, E] plus their position, as ``TransformerEncoder.positioned``.

    The context of a positional convolution is joined on, not padded on: the engine has no asymmetric pad.
    """
    encoder, config, part = student.encoder, student.config, student.encoder.pos_conv[0]
    before = torch.zeros(1, config.width, config.position_kernel - 1 - config.lookahead_frames)
    after = torch.zeros(1, config.width, config.lookahead_frames)

    def padded(columns: Tensor) -> Tensor:
        """[1, E, F] -> [1, E, F + K - 1], zeros where no frame is."""
        return torch.cat([one for one in (before, columns, after) if one.shape[-1] != 0], dim=-1)

    def existing(columns: Tensor) -> Tensor:
        return columns if frame_valid is None else columns * frame_valid[:, None]

    columns = x.transpose(1, 2)
    if isinstance(part, NormedConv):
        return encoder.joined(x, F.gelu(part.conv(padded(existing(part.norm(columns))))).transpose(1, 2))
    if isinstance(part, ConvStack):
        for conv in part:
            rows = conv(padded(columns)).transpose(1, 2)
            columns = existing(F.gelu(F.layer_norm(rows, (config.width,))).transpose(1, 2))
        return encoder.joined(x, columns.transpose(1, 2))
    return encoder.add_position(x, padded(columns))


class FloatMaskFrontEnd(nn.Module):
    """The front end of a window with its frame mask in 0/1 floats from end to end."""

    def __init__(self, plain: FeatureExtractor) -> None:
        super().__init__()
        self.blocks = plain.conv_layers

    def forward(self, wave: Tensor, lengths: Tensor | None = None, *, frame_valid: Tensor | None = None) -> Tensor:
        """[1, T] -> [1, C, F]; ``frame_valid`` [1, F]."""
        x = wave[:, None, :]
        for block in self.blocks:
            x = block[0](x)
            if len(block) == 4:
                norm = block[2]
                masked = isinstance(norm, TimeNorm) and frame_valid is not None
                x = norm.masked(x, float_step_mask(frame_valid)) if masked else norm(x)
            x = block[-1](x)
        return x


class HeldStep(nn.Module):
    """A step whose states are buffers that it reads and writes itself: (samples, fresh) -> outputs.

    ``append`` states are shifted here, in the graph, so that every state is simply replaced.
    """

    def __init__(self, step: nn.Module, states: Sequence[State], example: Sequence[Tensor], outputs: int) -> None:
        super().__init__()
        self.step, self.states, self.outputs = step, tuple(states), outputs
        for state, tensor in zip(states, example, strict=True):
            self.register_buffer(state.name, torch.zeros_like(tensor))

    def forward(self, samples: Tensor, fresh: Tensor) -> tuple[Tensor, ...]:
        old = [getattr(self, state.name) for state in self.states]
        results = self.step(samples, fresh, *old)
        for state, before, new in zip(self.states, old, results[self.outputs :], strict=True):
            before.copy_(new if state.update == "replace" else shifted(before, new, state.axis))
        return tuple(results[: self.outputs])


def shifted(before: Tensor, rows: Tensor, axis: int) -> Tensor:
    """``before`` without its oldest rows along ``axis``, and the new ``rows`` behind."""
    count, size = rows.shape[axis], before.shape[axis]
    if count >= size:
        return rows.narrow(axis, count - size, size)
    return torch.cat([before.narrow(axis, count, size - count), rows], dim=axis)


def held_states(states: Sequence[State]) -> tuple[State, ...]:
    """The manifest's entries for states that the engine keeps: replaced whole, in half precision, in and out alike."""
    changes: dict[str, Any] = {"update": "replace", "ordered": True, "dtype": "float16"}
    return tuple(dataclasses.replace(state, output=state.input, **changes) for state in states)
