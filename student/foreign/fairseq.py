"""fairseq HuBERT files and WavLM's own format, in transformers' words: read without fairseq, nothing is executed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from reuse_distill.runtime.errors import RdError
from reuse_distill.student.checkpoints.public import parse_list
from torch import Tensor

# Settings whose other values these models do not have.
REQUIRED = {
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "pos_conv_depth": 1,
    "attn_type": "",
    "pos_enc_type": "abs",
    "conv_pos_batch_norm": False,
    "required_seq_len_multiple": (1, 2),  # padding that is cut off again
}
RENAMED = (
    (r"^mask_emb$", "masked_spec_embed"),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.2\.(?:1\.)?", r"\1.layer_norm."),
    (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.self_attn\.relative_attention_bias\.", ".attention.rel_attn_embed."),
    (r"\.self_attn\.grep_linear\.", ".attention.gru_rel_pos_linear."),
    (r"\.self_attn\.grep_a$", ".attention.gru_rel_pos_const"),
    (r"\.self_attn\.", ".attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)


def read_fairseq(path: Path, data: Any) -> tuple[dict[str, Any], dict[str, Tensor], bool]:
    """(configuration, weights and heads by transformers' names, whether audio is normalised) of a ``.pt``.

    ``data`` is what the file holds. Raises RdError for an unknown layout or setting.
    """
    settings, normalise = _settings(data, path)
    weights = {transformers_name(str(name)): value for name, value in data["model"].items()}
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise RdError(f"{path}: {name:.60} is not a tensor")
    return _config(settings, path), weights, normalise


def transformers_name(name: str) -> str:
    """``encoder.layers.0.fc1.weight`` -> ``encoder.layers.0.feed_forward.intermediate_dense.weight``."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _settings(data: Any, path: Path) -> tuple[dict[str, Any], bool]:
    """The model's settings and whether it wants normalised audio, of either layout."""
    config = data.get("cfg") if isinstance(data, dict) else None
    if not isinstance(config, dict) or not isinstance(data.get("model"), dict):
        raise RdError(
            f"{path} has no 'cfg' and 'model' as HuBERT and WavLM checkpoints have",
            hint="give a pre-trained .pt of fairseq HuBERT or of WavLM, or a transformers folder",
        )
    if "encoder_layers" in config:  # WavLM's own layout
        return config, bool(config.get("normalize", False))
    model, task = config.get("model"), config.get("task")
    if not isinstance(model, dict) or model.get("_name") != "hubert":
        name = model.get("_name") if isinstance(model, dict) else type(model).__name__
        raise RdError(f"{path} holds the model {name!r}", hint="fairseq files of HuBERT are read; others as folders")
    return model, bool(task.get("normalize", False)) if isinstance(task, dict) else False


def _config(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    wavlm = "relative_position_embedding" in settings
    for key, only in REQUIRED.items():
        known = only if isinstance(only, tuple) else (only,)
        if settings.get(key, known[0]) not in known:
            raise RdError(f"{path}: {key} is {settings[key]!r:.60}, only {known[0]!r} is supported")
    if wavlm and not (settings.get("relative_position_embedding") and settings.get("gru_rel_pos")):
        raise RdError(f"{path}: WavLM without gated relative positions is not supported")
    try:
        convolutions = parse_list(settings["conv_feature_layers"], where="conv_feature_layers")
        channels, kernels, strides = zip(*convolutions, strict=True)
        values = {
            "model_type": "wavlm" if wavlm else "hubert",
            "hidden_size": settings["encoder_embed_dim"],
            "num_hidden_layers": settings["encoder_layers"],
            "num_attention_heads": settings["encoder_attention_heads"],
            "intermediate_size": settings["encoder_ffn_embed_dim"],
            "conv_dim": list(channels),
            "conv_kernel": list(kernels),
            "conv_stride": list(strides),
            "conv_bias": settings["conv_bias"],
            "feat_extract_norm": {"default": "group", "layer_norm": "layer"}[settings["extractor_mode"]],
            "do_stable_layer_norm": settings["layer_norm_first"],
            "num_conv_pos_embeddings": settings["conv_pos"],
            "num_conv_pos_embedding_groups": settings["conv_pos_groups"],
        }
        if wavlm:
            values |= {"num_buckets": settings["num_buckets"], "max_bucket_distance": settings["max_distance"]}
    except (KeyError, TypeError, ValueError) as error:
        raise RdError(f"{path}: its settings are not those of HuBERT or WavLM ({error})") from None
    return values
