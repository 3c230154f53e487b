"""A foreign checkpoint as a ``Student`` that computes the same features: every layer its own map, nothing reused.

Of Whisper: a transformers folder, whole or its encoder alone.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ
from reuse_distill.student.checkpoints.public import build_strictly
from reuse_distill.student.config import MEL_HOP_SAMPLES, MEL_WINDOW_SAMPLES, StudentConfig
from reuse_distill.student.foreign.fields import flag, whole_number, whole_numbers
from reuse_distill.student.foreign.foreign_checkpoint import PREPROCESSOR, ForeignCheckpoint
from reuse_distill.student.foreign.melhubert import KIND as MELHUBERT
from reuse_distill.student.foreign.melhubert import melhubert_config
from reuse_distill.student.model import Student
from torch import Tensor

_RENAMED = (
    (r"^masked_spec_embed$", "mask_emb"),
    (r"^feature_projection\.layer_norm\.", "layer_norm."),
    (r"^feature_projection\.projection\.", "post_extract_proj."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.conv\.", r"\1.0."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.layer_norm\.", r"\1.2."),
    (r"^encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0$", "encoder.pos_conv.0.weight_g"),
    (r"^encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original1$", "encoder.pos_conv.0.weight_v"),
    (r"^encoder\.pos_conv_embed\.batch_norm\.", "encoder.pos_conv.0.norm."),
    (r"^encoder\.pos_conv_embed\.layers\.(\d+)\.conv\.", r"encoder.pos_conv.0.\1."),
    (r"^encoder\.pos_conv_embed\.conv\.", "encoder.pos_conv.0."),
    (r"^(encoder\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
    (r"^encoder\.layers\.0\.attention\.rel_attn_embed\.", "encoder.relative."),
    (r"^(encoder\.layers\.\d+)\.attention\.gru_rel_pos_linear\.", r"\1.gate.grep_linear."),
    (r"^(encoder\.layers\.\d+)\.attention\.gru_rel_pos_const$", r"\1.gate.grep_a"),
    (r"^(encoder\.layers\.\d+)\.attention\.", r"\1.self_attn."),
    (r"^(encoder\.layers\.\d+)\.feed_forward\.intermediate_dense\.", r"\1.fc1."),
    (r"^(encoder\.layers\.\d+)\.feed_forward\.output_dense\.", r"\1.fc2."),
)
_WHISPER_RENAMED = (
    ("conv1.", "feature_extractor.conv_layers.0.0."),
    ("conv2.", "feature_extractor.conv_layers.1.0."),
    ("embed_positions.", "encoder.pos_conv.0."),
    ("layers.", "encoder.layers."),
    ("layer_norm.", "encoder.layer_norm."),
)


def student_name(name: str) -> str:
    """``encoder.layers.0.attention.q_proj.weight`` -> ``encoder.layers.0.self_attn.q_proj.weight``. Others stay."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def student_of(checkpoint: ForeignCheckpoint) -> Student:
    """The encoder (eval mode, float32). Raises RdError for shapes that are not possible and keys that do not fit."""
    config = encoder_config(checkpoint)
    if checkpoint.kind == "whisper":
        state = whisper_state(checkpoint)
    elif checkpoint.kind == MELHUBERT:  # its names are a student's
        state = checkpoint.weights
    else:
        state = {_in_place(student_name(name), config): value for name, value in checkpoint.weights.items()}
    return build_strictly(config, state, where=checkpoint.name)


def encoder_config(checkpoint: ForeignCheckpoint) -> StudentConfig:
    """The shape of the encoder as a student's."""
    if checkpoint.kind == MELHUBERT:
        return melhubert_config(checkpoint.fields, checkpoint.weights, checkpoint.name)
    return whisper_config(checkpoint) if checkpoint.kind == "whisper" else _wav2vec_config(checkpoint)


def _wav2vec_config(checkpoint: ForeignCheckpoint) -> StudentConfig:
    fields, where = checkpoint.fields, checkpoint.name
    data2vec = checkpoint.kind == "data2vec-audio"
    kernel = whole_number(fields, "conv_pos_kernel_size" if data2vec else "num_conv_pos_embeddings", where)
    batch_norm = "conv_pos_batch_norm" in fields and flag(fields, "conv_pos_batch_norm", where)
    stable = not data2vec and flag(fields, "do_stable_layer_norm", where)
    relative: dict[str, Any] = {}
    if checkpoint.kind == "wavlm":
        relative = {
            "relative_buckets": whole_number(fields, "num_buckets", where),
            "relative_distance": whole_number(fields, "max_bucket_distance", where),
        }
    return StudentConfig(
        conv_layers=_convolutions(fields, where),
        conv_norm=_conv_norm(fields, where),
        conv_bias=flag(fields, "conv_bias", where),
        width=whole_number(fields, "hidden_size", where),
        ffn_width=whole_number(fields, "intermediate_size", where),
        heads=whole_number(fields, "num_attention_heads", where),
        layers=whole_number(fields, "num_hidden_layers", where),
        project_input=True,
        frame_norm="feat_proj_layer_norm" not in fields or flag(fields, "feat_proj_layer_norm", where),
        position="stack" if data2vec else "batch-norm" if batch_norm else "conv",
        position_layers=whole_number(fields, "num_conv_pos_embeddings", where) if data2vec else 1,
        position_kernel=kernel,
        position_groups=whole_number(fields, "num_conv_pos_embedding_groups", where),
        lookahead_frames=(kernel - 1) // 2,
        norm_first=stable,
        norm_eps=_epsilon(fields, where),
        normalise_input=checkpoint.normalise_input,
        head_width=None,
        mask_embedding="masked_spec_embed" in checkpoint.weights,
        input_dropout=0.0,
        **relative,
    )


def _convolutions(fields: dict[str, Any], where: str) -> tuple[tuple[int, int, int], ...]:
    channels, kernels, strides = (
        whole_numbers(fields, name, where) for name in ("conv_dim", "conv_kernel", "conv_stride")
    )
    if not len(channels) == len(kernels) == len(strides):
        raise RdError(
            f"{where}: {len(channels)} conv_dim, {len(kernels)} conv_kernel and {len(strides)} conv_stride",
            hint="one of each per convolution",
        )
    return tuple(zip(channels, kernels, strides, strict=True))


def _conv_norm(fields: dict[str, Any], where: str) -> str:
    norm = fields.get("feat_extract_norm", "layer")
    if norm not in ("group", "layer"):
        raise RdError(f"{where}: feat_extract_norm is {norm!r:.40}, group or layer is needed")
    return "group" if norm == "group" else "every"


def _epsilon(fields: dict[str, Any], where: str) -> float:
    value = fields["layer_norm_eps"]
    if type(value) not in (int, float) or not 0 < value <= 1:
        raise RdError(f"{where}: layer_norm_eps is {value!r:.40}, a number between 0 and 1 is needed")
    return float(value)


def _in_place(name: str, config: StudentConfig) -> str:
    """Of a convolution behind a batch norm, which has a name of its own."""
    if config.position != "batch-norm" or ".norm." in name:
        return name
    return name.replace("encoder.pos_conv.0.", "encoder.pos_conv.0.conv.")


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
        prefix, new = next(((old, new) for old, new in _WHISPER_RENAMED if plain.startswith(old)), ("", ""))
        state[new + plain[len(prefix) :]] = value
        if name.endswith("self_attn.k_proj.weight"):
            state[(new + plain[len(prefix) :]).replace("weight", "bias")] = torch.zeros(value.shape[:1])
    if not state:
        raise RdError(
            f"{checkpoint.name} has no weights of Whisper's encoder", hint="such as model.encoder.conv1.weight"
        )
    return state
