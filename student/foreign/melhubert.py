"""MelHuBERT's public checkpoints (arXiv 2211.09944, 2211.09949): whole, or with weights, heads or rows pruned.

A checkpoint is one file with its settings inside; the mean and standard deviation that its log-mel is normalised by lie
in a second one, ``mean-std.npy``, which is looked for beside it. What was pruned is read off the shapes of the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.student.checkpoints.public import plain_text
from reuse_distill.student.config import StudentConfig
from reuse_distill.student.foreign.fields import whole_number
from torch import Tensor

KIND = "melhubert"
STATISTICS = "mean-std.npy"
BANDS = 40
_LARGEST_STATISTICS_BYTES = 1 << 16
_WIDTHS = {40: 1, 80: 2}  # of the input -> frames of 10 ms in one
# Settings that this reader supports in one form only, and those that change nothing outside training.
_REQUIRED: dict[str, Any] = {
    "pos_emb_type": "conv",
    "pos_conv_depth": 1,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "attention_type": "original",
}
_SIZES = {
    "feat_emb_dim": 40,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "encoder_layers": 12,
    "conv_pos": 128,
    "conv_pos_groups": 16,
}
_DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")
_IGNORED = (
    *("num_cluster", "final_dim", "pred_masked_weight", "pred_nomask_weight", "skip_masked", "skip_nomask"),
    *("mask_prob", "mask_length", "mask_selection", "mask_other", "no_mask_overlap", "mask_min_space"),
    *("learnable_mask_emb", "mask_before_proj", "encoder_layerdrop"),
)


def holds_melhubert(data: Any) -> bool:
    """Whether what a file holds has the layout of MelHuBERT's checkpoints."""
    return isinstance(data, dict) and isinstance(data.get("model"), dict) and "Upstream_Config" in data


def read_melhubert(path: Path, data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(settings, weights under a student's names) of the checkpoint in ``path``, whose content is ``data``.

    Pruned weights are multiplied with their masks. Raises RdError for unknown settings, for what is no tensor, and
    where the statistics are missing or damaged.
    """
    settings = _settings(data["Upstream_Config"], path)
    weights: dict[str, Tensor] = {}
    for name, value in data["model"].items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise RdError(f"{path}: {plain_text(name)} is not a tensor")
        weights[name.replace("pre_extract_proj.", "post_extract_proj.")] = value
    mean, std = read_statistics(path)
    return settings, {
        **_with_masks(weights, path),
        "feature_extractor.mean": mean,
        "feature_extractor.std": std,
    }


def read_statistics(checkpoint: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (40,) of ``mean-std.npy``, the one file of such a name beside ``checkpoint``."""
    files = sorted(checkpoint.parent.glob(f"*{STATISTICS}"))
    if len(files) != 1:
        raise RdError(
            f"{checkpoint} needs the mean and deviation of its log-mel: {len(files)} files *{STATISTICS} beside it",
            hint="copy the one that the checkpoint was trained with (libri-360-mean-std.npy in the public code)",
        )
    file = files[0]
    if file.stat().st_size > _LARGEST_STATISTICS_BYTES:
        raise RdError(f"{file}: {file.stat().st_size} bytes, two rows of {BANDS} numbers are needed")
    try:
        rows = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RdError(f"{file}: not a readable array ({str(error)[:100]})", hint="copy it again") from None
    if rows.dtype.kind != "f" or rows.shape[:1] != (2,) or rows.size != 2 * BANDS:
        raise RdError(f"{file}: an array of {rows.dtype} {rows.shape}, floats (2, {BANDS}) are needed")
    mean, std = torch.from_numpy(rows.astype(np.float32)).reshape(2, BANDS)
    if not bool(torch.isfinite(mean).all()) or not bool((torch.isfinite(std) & (std > 0)).all()):
        raise RdError(f"{file}: mean and deviation have to be finite, and deviations above 0")
    return mean, std


def melhubert_config(settings: dict[str, Any], weights: dict[str, Tensor], where: str) -> StudentConfig:
    """The shape of the encoder, heads and feed-forward units of each layer as the weights have them."""
    sizes = {name: whole_number({name: settings.get(name, default)}, name, where) for name, default in _SIZES.items()}
    stacked = _WIDTHS.get(sizes["feat_emb_dim"])
    if stacked is None:
        raise RdError(
            f"{where}: feat_emb_dim is {sizes['feat_emb_dim']}, log-mel frames have {BANDS} numbers (10 ms) or "
            f"{2 * BANDS} (20 ms)"
        )
    width, heads, layers = (sizes[f"encoder_{name}"] for name in ("embed_dim", "attention_heads", "layers"))
    left = tuple(_rows(weights, f"encoder.layers.{n}.self_attn.v_proj.weight", where) for n in range(layers))
    units = tuple(_rows(weights, f"encoder.layers.{n}.fc1.weight", where) for n in range(layers))
    depth = max(1, width // heads)
    broken = [number for number, rows in enumerate(left, start=1) if rows % depth]
    if broken:
        raise RdError(f"{where}: layer {broken[0]} has {left[broken[0] - 1]} values, heads are {depth} wide")
    whole = all(rows == width for rows in left)
    return StudentConfig(
        conv_layers=((sizes["feat_emb_dim"], stacked, stacked),),
        conv_norm="layer",
        front_end="fbank",
        mel_bands=BANDS,
        width=width,
        ffn_width=sizes["encoder_ffn_embed_dim"],
        heads=heads,
        layers=layers,
        position_kernel=sizes["conv_pos"],
        position_groups=sizes["conv_pos_groups"],
        lookahead_frames=(sizes["conv_pos"] - 1) // 2,
        head_width=None,
        frame_norm=False,
        mask_embedding=False,
        input_dropout=0.0,
        layer_heads=() if whole else tuple(rows // depth for rows in left),
        layer_ffn_widths=() if all(rows == sizes["encoder_ffn_embed_dim"] for rows in units) else units,
        dropout=_probability(settings, "dropout", where),
        attention_dropout=_probability(settings, "attention_dropout", where),
        activation_dropout=_probability(settings, "activation_dropout", where),
    )


def _settings(config: Any, path: Path) -> dict[str, Any]:
    """The section of the encoder; the oldest files call it hubert."""
    section = config.get(KIND, config.get("hubert")) if isinstance(config, dict) else None
    if not isinstance(section, dict):
        raise RdError(f"{path}: Upstream_Config has no section {KIND!r}")
    known = [*_REQUIRED, *_SIZES, *_DROPOUTS, *_IGNORED]
    for key, value in section.items():
        if key not in known:
            raise RdError(f"{path}: unknown setting {plain_text(key)}", hint=nearest(str(key)[:60], known))
        if key in _REQUIRED and value != _REQUIRED[key]:
            raise RdError(f"{path}: {key} is {plain_text(value)}, only {_REQUIRED[key]!r} is supported")
    return section


def _with_masks(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """``x_orig`` and ``x_mask`` of pruned weights as ``x``."""
    plain = {}
    for name, value in weights.items():
        if name.endswith("_orig"):
            mask = weights.get(f"{name.removesuffix('_orig')}_mask")
            if mask is None or mask.shape != value.shape:
                raise RdError(f"{path}: {name} has no mask of its shape")
            plain[name.removesuffix("_orig")] = value * mask
        elif not name.endswith("_mask"):
            plain[name] = value
    return plain


def _rows(weights: dict[str, Tensor], name: str, where: str) -> int:
    value = weights.get(name)
    if value is None or value.ndim != 2:
        raise RdError(f"{where}: {name} is missing or no matrix", hint="is this file complete?")
    return value.shape[0]


def _probability(settings: dict[str, Any], name: str, where: str) -> float:
    value = settings.get(name, 0.1)
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise RdError(f"{where}: {name} is {plain_text(value)}, a number from 0 to 1 is needed")
    return float(value)
