"""The captured module -> a ``.tflite`` in float32 with one signature, whose names are those of the manifest.

LiteRT's shapes are those of the file, so a whole utterance is computed in a call of fixed length. The utterance stands
at the beginning of the wave, zeros after it; how many samples it has is an input. No statistic, attention or
convolution sees what is after them, so the frames that exist are those of the utterance alone. LiteRT's converter and
quantiser are imported when needed.

Shape legend: T samples of the call, N exported layers, F frames, S steps of the first convolution, W feature width.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from reuse_distill.export.capture.capture import Capture, CapturedUtterance
from reuse_distill.export.capture.exported_layers import exported
from reuse_distill.export.spec import Offline
from reuse_distill.export.targets.coreml.coreml_modules import encode, friendly
from reuse_distill.export.targets.vendor_packages import imported, telling
from reuse_distill.runtime.bundle_format.manifest import Tensor as Port
from reuse_distill.runtime.engines.litert_backend import DEFAULT_SIGNATURE, LENGTH
from reuse_distill.runtime.errors import RdError, install_hint
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, frames_for
from reuse_distill.student.config import MEL_HOP_SAMPLES, MEL_WINDOW_SAMPLES
from reuse_distill.student.front_ends.filter_bank import FilterBankFrontEnd
from reuse_distill.student.front_ends.frontend import FeatureExtractor, TimeNorm
from torch import Tensor, nn

HINT = install_hint("export", "litert-export")


def convert(captured: Capture, file: Path) -> None:
    """Write ``captured`` to ``file``. Raises RdError with the converter's own message."""
    converter = load_converter()
    module = captured.module if isinstance(captured.module, FixedLength) else friendly(captured)
    with telling("LiteRT's converter could not convert the student"), torch.no_grad():
        converted = converter.convert(captured.whole(module).eval(), captured.example)
        converted.export(str(file))
    name_ports(file, captured.input_names, captured.output_names)


def name_ports(file: Path, inputs: list[str], outputs: list[str]) -> None:
    """The one signature's ports under the manifest's names; the converter numbers them in the module's order.

    Raises RdError where their numbers differ.
    """
    tools = load("ai_edge_litert.tools.flatbuffer_utils")
    model = tools.read_model(str(file))
    signatures = [one for one in model.signatureDefs or [] if _text(one.signatureKey) == DEFAULT_SIGNATURE]
    if len(signatures) != 1 or len(model.signatureDefs) != 1:
        raise RdError(f"{file.name}: {len(model.signatureDefs or [])} signatures, one is expected")
    for ports, names, prefix in (
        (signatures[0].inputs, inputs, "args_"),
        (signatures[0].outputs, outputs, "output_"),
    ):
        ordered = sorted(ports, key=lambda port: int(_text(port.name).removeprefix(prefix)))
        if len(ordered) != len(names):
            raise RdError(f"{file.name}: {len(ordered)} ports, {', '.join(names)} are expected")
        for port, name in zip(ordered, names, strict=True):
            port.name = name.encode()
    tools.write_model(model, str(file))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


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
        self.register_buffer("frame_ends", window_ends(samples, RECEPTIVE_FIELD_SAMPLES, HOP_SAMPLES))

    def forward(self, wave: Tensor, length: Tensor) -> Tensor:
        exists = present(self.frame_ends, length)
        # The mask of steps reaches the front end as its frame mask does in a window.
        x = self.student.frames(wave, frame_valid=length)[1] * exists[..., None]
        entering, *hidden = encode(self.student, x, exists)
        features = exported(self.student, hidden, self.layers, self.features, frames=x.shape[1], entering=entering)
        return torch.stack(features, dim=1)


def window_ends(samples: int, size: int, hop: int) -> Tensor:
    """[1, N] the sample at which each whole window of ``size`` samples ends, one every ``hop``."""
    return (torch.arange((samples - size) // hop + 1) * hop + size)[None].float()


def present(ends: Tensor, length: Tensor) -> Tensor:
    """1 where what ends at sample ``ends`` [1, F] lies in the first ``length`` [1, 1] samples, else 0: floats alone."""
    return (length - ends + 1.0).clamp(0.0, 1.0)


def utterance_front_end(plain: nn.Module, samples: int) -> nn.Module:
    """The front end itself, or one that takes the length: where its first norm runs over the utterance, or where a
    frame holds two of 10 ms, of which the last may be beyond the end."""
    if isinstance(plain, FeatureExtractor) and any(isinstance(part, TimeNorm) for part in plain.modules()):
        return LengthFrontEnd(plain, samples)
    if isinstance(plain, FilterBankFrontEnd):
        return LengthFilterBank(plain, samples)
    return plain


class LengthFrontEnd(nn.Module):
    """The convolutions, the statistics of the first norm over the steps of the utterance. [1, T] -> [1, C, F]."""

    step_ends: Tensor

    def __init__(self, plain: FeatureExtractor, samples: int) -> None:
        super().__init__()
        self.blocks = plain.conv_layers
        kernel, stride = self.blocks[0][0].kernel_size[0], self.blocks[0][0].stride[0]
        self.register_buffer("step_ends", window_ends(samples, kernel, stride))  # [1, S]

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


class LengthFilterBank(nn.Module):
    """The log filter bank, zero for frames of 10 ms that end beyond the utterance. [1, T] -> [1, C, F]."""

    mel_ends: Tensor

    def __init__(self, plain: FilterBankFrontEnd, samples: int) -> None:
        super().__init__()
        self.plain = plain
        self.register_buffer("mel_ends", window_ends(samples, MEL_WINDOW_SAMPLES, MEL_HOP_SAMPLES))  # [1, M]

    def forward(self, wave: Tensor, lengths: Tensor | None = None, *, frame_valid: Tensor | None = None) -> Tensor:
        """``frame_valid``: the length [1, 1] of the utterance in samples."""
        assert frame_valid is not None  # noqa: S101  (FixedLength gives it)
        return self.plain.side_by_side(self.plain.normalised(wave) * present(self.mel_ends, frame_valid)[:, None])


def load_converter() -> Any:
    """``litert_torch``; raises RdError that names the extra where it is missing."""
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    return load("litert_torch")


def load(module: str) -> Any:
    """The module ``module`` of the converter or the quantiser; raises RdError that names the extra."""
    return imported(module, hint=HINT)
