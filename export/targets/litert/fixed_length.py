"""A whole utterance in a call of fixed length: LiteRT's shapes are those of the file.

The utterance stands at the beginning of the wave, zeros after it; how many samples it has is an input. No statistic,
attention or convolution sees what is after them, so the frames that exist are those of the utterance alone.

Shape legend: T samples of the call, N exported layers, F frames, S steps of the first convolution, W feature width.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from reuse_distill.export.capture.capture import Capture, CapturedUtterance
from reuse_distill.export.capture.exported_layers import exported
from reuse_distill.export.spec import Offline
from reuse_distill.export.targets.coreml.coreml_modules import encode
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, frames_for
from reuse_distill.runtime.litert.litert_backend import LENGTH
from reuse_distill.runtime.manifest import Tensor as Port
from reuse_distill.student.frontend import FeatureExtractor, TimeNorm
from torch import Tensor, nn


def of_fixed_length(captured: Capture, mode: Offline) -> Capture:
    """``captured`` for utterances of up to ``mode.max_seconds``, with the number of samples as a second input."""
    module = captured.module
    assert isinstance(module, CapturedUtterance)  # noqa: S101  (the mode is offline)
    samples = int(mode.max_seconds * SAMPLE_RATE_HZ)
    frames = frames_for(samples)
    sizes = {"T": samples, "F": frames}

    def fixed(port: Port) -> Port:
        return dataclasses.replace(port, shape=tuple(sizes.get(str(size), size) for size in port.shape))

    return dataclasses.replace(
        captured,
        module=FixedLength(module, samples),
        example=(torch.zeros(1, samples), torch.full((1, 1), float(samples))),
        inputs=(*map(fixed, captured.inputs), Port(LENGTH, "float32", (1, 1))),
        outputs=tuple(map(fixed, captured.outputs)),
        dynamic_axes={},
    )


class FixedLength(nn.Module):
    """(wave [1, T], length [1, 1]) -> features [1, N, F, W]; frames after the utterance mean nothing."""

    frame_ends: Tensor

    def __init__(self, utterance: CapturedUtterance, samples: int) -> None:
        super().__init__()
        self.student = copy.deepcopy(utterance.student)
        self.layers, self.features = utterance.layers, utterance.features
        self.front_end = utterance_front_end(self.student.feature_extractor, samples)
        self.student.feature_extractor = self.front_end
        ends = torch.arange(frames_for(samples)) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES
        self.register_buffer("frame_ends", ends[None].float())

    def forward(self, wave: Tensor, length: Tensor) -> Tensor:
        exists = present(self.frame_ends, length)
        # The mask of steps reaches the front end as its frame mask does in a window.
        x = self.student.frames(wave, frame_valid=length)[1] * exists[..., None]
        entering, *hidden = encode(self.student, x, exists)
        features = exported(self.student, hidden, self.layers, self.features, frames=x.shape[1], entering=entering)
        return torch.stack(features, dim=1)


def present(ends: Tensor, length: Tensor) -> Tensor:
    """1 where what ends at sample ``ends`` [1, F] lies in the first ``length`` [1, 1] samples, else 0: floats alone."""
    return (length - ends + 1.0).clamp(0.0, 1.0)


def utterance_front_end(plain: nn.Module, samples: int) -> nn.Module:
    """The front end itself, or, where its first norm runs over the utterance, one that takes the length instead."""
    if isinstance(plain, FeatureExtractor) and any(isinstance(part, TimeNorm) for part in plain.modules()):
        return LengthFrontEnd(plain, samples)
    return plain


class LengthFrontEnd(nn.Module):
    """The convolutions, the statistics of the first norm over the steps of the utterance. [1, T] -> [1, C, F]."""

    step_ends: Tensor

    def __init__(self, plain: FeatureExtractor, samples: int) -> None:
        super().__init__()
        self.blocks = plain.conv_layers
        kernel, stride = self.blocks[0][0].kernel_size[0], self.blocks[0][0].stride[0]
        ends = torch.arange((samples - kernel) // stride + 1) * stride + kernel
        self.register_buffer("step_ends", ends[None].float())  # [1, S]

    def forward(self, wave: Tensor, lengths: Tensor | None = None, *, frame_valid: Tensor | None = None) -> Tensor:
        """``frame_valid``: the length [1, 1] of the utterance in samples."""
        assert frame_valid is not None  # noqa: S101  (FixedLength gives it)
        mask = present(self.step_ends, frame_valid)
        x = wave[:, None, :]
        for block in self.blocks:
            x = block[0](x)
            if len(block) == 4:
                x = block[2].masked(x, mask) if isinstance(block[2], TimeNorm) else block[2](x)
            x = block[-1](x)
        return x
