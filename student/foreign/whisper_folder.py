"""A transformers folder of Whisper, whole or its encoder alone: its shape and its weights as a student's."""

from __future__ import annotations

from typing import Any

import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ
from reuse_distill.student.config import MEL_HOP_SAMPLES, MEL_WINDOW_SAMPLES, StudentConfig
from reuse_distill.student.foreign.fields import whole_number
from reuse_distill.student.foreign.foreign_checkpoint import PREPROCESSOR, ForeignCheckpoint
from torch import Tensor

_RENAMED = (
    ("conv1.", "feature_extractor.conv_layers.0.0."),
    ("conv2.", "feature_extractor.conv_layers.1.0."),
    ("embed_positions.", "encoder.pos_conv.0."),
    ("layers.", "encoder.layers."),
    ("layer_norm.", "encoder.layer_norm."),
)


def whisper_config(checkpoint: ForeignCheckpoint) -> StudentConfig:
    """The shape of the encoder. Raises RdError for a preprocessor that is not Whisper's own."""
    fields, where = checkpoint.fields, checkpoint.name
    frames = whole_number(fields, "max_source_positions", where)
    bands, width = whole_number(fields, "num_mel_bins", where), whole_number(fields, "d_model", where)
    known = {
        "feature_size": bands,
        "hop_length": MEL_HOP_SAMPLES,
        "n_fft": MEL_WINDOW_SAMPLES,
        "dither": 0.0,
        "padding_value": 0.0,
        "chunk_length": frames * HOP_SAMPLES // SAMPLE_RATE_HZ,
    }
    for name, value in known.items():
        given = checkpoint.preprocessor.get(name, value)
        if given != value:
            raise RdError(f"{where}: {name} of {PREPROCESSOR} is {given!r:.40}, only {value!r} is supported")
    return StudentConfig(
        conv_layers=((width, 3, 1), (width, 3, 2)),
        conv_norm="layer",
        front_end="whisper",
        mel_bands=bands,
        window_frames=frames,
        width=width,
        ffn_width=whole_number(fields, "encoder_ffn_dim", where),
        heads=whole_number(fields, "encoder_attention_heads", where),
        layers=whole_number(fields, "encoder_layers", where),
        frame_norm=False,
        position="absolute",
        position_kernel=1,
        position_groups=1,
        lookahead_frames=0,
        norm_first=True,
        normalise_input=checkpoint.normalise_input,
        head_width=None,
        mask_embedding=False,
        input_dropout=0.0,
    )


def whisper_state(checkpoint: ForeignCheckpoint) -> dict[str, Any]:
    """The weights under a student's names; keys have no bias in Whisper, here it is zero."""
    state: dict[str, Tensor] = {}
    for name, value in checkpoint.weights.items():
        plain = name.removeprefix("encoder.")
        prefix, new = next(((old, new) for old, new in _RENAMED if plain.startswith(old)), ("", ""))
        state[new + plain[len(prefix) :]] = value
        if name.endswith("self_attn.k_proj.weight"):
            state[(new + plain[len(prefix) :]).replace("weight", "bias")] = torch.zeros(value.shape[:1])
    if not state:
        raise RdError(
            f"{checkpoint.name} has no weights of Whisper's encoder", hint="such as model.encoder.conv1.weight"
        )
    return state
