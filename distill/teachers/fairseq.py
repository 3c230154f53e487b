"""Teachers from fairseq HuBERT files and from WavLM's own format, read without fairseq and without executing them.

The file is read by ``student.unpickle``; its settings become a transformers configuration and its weights take that
model's names. Every key is used or named in the error.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from reuse_distill.distill.teachers.vendor import transformers
from reuse_distill.runtime.errors import RdError
from reuse_distill.student.public import parse_list
from reuse_distill.student.unpickle import read_torch_file
from torch import Tensor

# Pre-training heads, which a feature teacher does not need.
HEADS = ("final_proj.", "label_embs_concat")
# Settings whose other values these models do not have.
REQUIRED = {
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "pos_conv_depth": 1,
    "attn_type": "",
    "pos_enc_type": "abs",
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


def load_fairseq(path: Path, *, attention: str | None = None) -> tuple[Any, str, bool]:
    """(transformers model, sha256 of the file, whether audio is normalised) from a ``.pt`` of HuBERT or WavLM.

    Raises RdError for a damaged file, an unknown layout or setting, and for keys that are missing or left over.
    """
    data = read_torch_file(path)
    settings, normalise = _settings(data, path)
    package = transformers()
    wavlm = "relative_position_embedding" in settings
    config = (package.WavLMConfig if wavlm else package.HubertConfig)(**_config(settings, path, wavlm=wavlm))
    if attention is not None:
        config._attn_implementation = attention
    model = (package.WavLMModel if wavlm else package.HubertModel)(config)
    load_strictly(model, data["model"], path)
    return model, hashlib.sha256(path.read_bytes()).hexdigest(), normalise


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


def _config(settings: dict[str, Any], path: Path, *, wavlm: bool) -> dict[str, Any]:
    for key, wanted in REQUIRED.items():
        if settings.get(key, wanted) != wanted:
            raise RdError(f"{path}: {key} is {settings[key]!r}, only {wanted!r} is supported")
    if wavlm and not (settings.get("relative_position_embedding") and settings.get("gru_rel_pos")):
        raise RdError(f"{path}: WavLM without gated relative positions is not supported")
    try:
        convolutions = parse_list(settings["conv_feature_layers"], where="conv_feature_layers")
        channels, kernels, strides = zip(*convolutions, strict=True)
        values = {
            "hidden_size": settings["encoder_embed_dim"],
            "num_hidden_layers": settings["encoder_layers"],
            "num_attention_heads": settings["encoder_attention_heads"],
            "intermediate_size": settings["encoder_ffn_embed_dim"],
            "conv_dim": channels,
            "conv_kernel": kernels,
            "conv_stride": strides,
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
    return {**values, "layerdrop": 0.0, "mask_time_prob": 0.65}


def load_strictly(model: Any, weights: dict[str, Any], path: Path | str) -> None:
    """Give the transformers ``model`` these weights; RdError names what is missing, left over or of another shape."""
    wanted: dict[str, Tensor] = model.state_dict()
    found = {_renamed(name, wanted): value for name, value in weights.items() if not name.startswith(HEADS)}
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [
        f"{name} is {list(found[name].shape)}, needed {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name].shape != wanted[name].shape
    ]
    for problem, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes)):
        if names:
            shown = "; ".join(names[:5]) + ("; …" if len(names) > 5 else "")
            raise RdError(f"{path}: {len(names)} parameters {problem}: {shown}", hint="is this file complete?")
    model.load_state_dict({name: value.float() for name, value in found.items()})


def _renamed(name: str, wanted: dict[str, Tensor]) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    if name not in wanted:  # how torch names weight norm depends on its version
        name = name.replace(".conv.weight_g", ".conv.parametrizations.weight.original0")
        name = name.replace(".conv.weight_v", ".conv.parametrizations.weight.original1")
    return name
