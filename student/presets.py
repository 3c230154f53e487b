"""Published and own student shapes, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.student.config import ChunkContext, StudentConfig, conv_stack, every_second, mel_stack

_PUBLISHED = StudentConfig(
    conv_layers=conv_stack(128, 256, 480),
    width=480,
    ffn_width=864,
    heads=12,
    layers=12,
    reuse_layers=every_second(12),
)
_SMALL = dataclasses.replace(_PUBLISHED, conv_layers=conv_stack(128, 256, 432), width=432, ffn_width=816)
_STAR = dataclasses.replace(_SMALL, reuse_layers=(), head_width=None, mask_embedding=False, ffn_width=976)
_TINY = StudentConfig(
    conv_layers=conv_stack(32, 48, 128),
    width=128,
    ffn_width=256,
    heads=4,
    layers=6,
    reuse_layers=every_second(6),
    head_width=128,
)
# What a stream needs: norms over one frame only, four frames of look-ahead, attention in chunks.
_STREAM: dict[str, Any] = {
    "conv_norm": "layer",
    "lookahead_frames": 4,
    "context": ChunkContext(chunk_frames=8, left_frames=128),
}

_FIT = dataclasses.replace(
    _PUBLISHED,
    conv_layers=conv_stack(128, 256, 512),
    ffn_width=480,
    reuse_layers=(),
    mask_embedding=False,
    time_reduction=2,
)
_DISTIL = dataclasses.replace(
    _PUBLISHED,
    conv_layers=((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2),
    width=768,
    ffn_width=3072,
    layers=2,
    reuse_layers=(),
    mask_embedding=False,
    frame_norm=False,
    head_kind="split",
    head_targets=(4, 8, 12),
    input_dropout=0.0,
)

# For phones and boards: log-mel in place of the convolutions, a short positional convolution (the backward of the
# published one, 128 taps, takes longer than all layers), no dropout (a small student never overfits its teacher).
_POCKET = StudentConfig(
    front_end="mel",
    conv_layers=mel_stack(192, 256),
    conv_norm="layer",
    width=256,
    ffn_width=1024,
    heads=4,
    layers=6,
    reuse_layers=every_second(6),
    position_kernel=32,
    lookahead_frames=4,
    head_width=512,  # of Whisper base; a recipe sets its teacher's
    dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    input_dropout=0.0,
)

PRESETS: dict[str, StudentConfig] = {
    "armhubert-960h": _PUBLISHED,  # 26,448,448 parameters with the 12 heads
    "armhubert-s": _SMALL,  # 22,394,080
    "armwavlm-s": _SMALL,  # the same shape, distilled from WavLM
    "maskhubert-960h": dataclasses.replace(_PUBLISHED, ffn_width=640, reuse_layers=()),  # 26,635,840
    "starhubert": _STAR,  # 22,308,592
    "starhubert-l": dataclasses.replace(_STAR, ffn_width=1392),  # inferred from size and GMACs
    "fithubert": _FIT,  # released configuration of FitHuBERT-960h; 22.49 M without heads, as published
    "distilhubert": _DISTIL,  # released configuration; 23.49 M without heads, as published
    # 22 M parameters; widths are multiples of 32 because phone NPUs pad to that.
    "arm-stream": dataclasses.replace(
        _PUBLISHED, conv_layers=conv_stack(128, 256, 384), width=384, ffn_width=1152, **_STREAM
    ),
    "pocket-stream": dataclasses.replace(_POCKET, **_STREAM),
    "pocket": _POCKET,
    "tiny": _TINY,  # about 1 M, for the demo and the tests
    "tiny-fit": dataclasses.replace(_TINY, reuse_layers=(), mask_embedding=False, time_reduction=2),
    "tiny-distil": dataclasses.replace(
        _TINY,
        layers=2,
        reuse_layers=(),
        mask_embedding=False,
        frame_norm=False,
        head_kind="split",
        head_targets=(2, 4, 6),
    ),
    "tiny-stream": dataclasses.replace(_TINY, **_STREAM),
}


def preset(name: str, **changes: Any) -> StudentConfig:
    """The configuration called ``name``, with fields replaced by ``changes``.

    Raises RdError for an unknown name or field.
    """
    if name not in PRESETS:
        raise RdError(f"there is no student preset {name!r}", hint=nearest(name, list(PRESETS)))
    known = [field.name for field in dataclasses.fields(StudentConfig)]
    for key in changes:
        if key not in known:
            raise RdError(f"a student has no setting {key!r}", hint=nearest(key, known))
    return dataclasses.replace(PRESETS[name], **changes)
