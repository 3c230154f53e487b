"""Public DistilHuBERT checkpoints of s3prl -> Student: the file holds its configuration and the heads.

The folder that transformers reads (a HubertModel of two layers without heads) is read by ``student.foreign``.
Nothing in the file is executed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from reuse_distill.runtime.errors import RdError
from reuse_distill.student.checkpoints.public import build_strictly, parse_list, plain_text
from reuse_distill.student.checkpoints.unpickle import read_torch_file
from reuse_distill.student.config import StudentConfig
from reuse_distill.student.model import Student

# s3prl's defaults, and the only values that this reader supports.
_REQUIRED: dict[str, Any] = {
    "extractor_mode": "default",
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "attention_type": "original",
    "out_layer_type": "expand-last",
    "task_emb_type": "expand-last",
    "out_layer_inter_dim": -1,
}
_CONV = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"


def load_distilhubert(path: str | os.PathLike[str]) -> Student:
    """Student (eval mode, float32) of s3prl's checkpoint file.

    Raises RdError for damaged files, settings that are not supported, and keys that do not fit.
    """
    path = Path(path)
    data = read_torch_file(path)
    config = data.get("Config") if isinstance(data, dict) else None
    section = config.get("distiller") if isinstance(config, dict) else None
    if not isinstance(section, dict) or not isinstance(data.get("Distiller"), dict):
        raise RdError(f"{path}: there is no 'Distiller' with its 'Config'", hint="give s3prl's DistilHuBERT checkpoint")
    _check(section, _REQUIRED, path)
    tasks, width = _number(section, "n_tasks", 12, path), _number(section, "encoder_embed_dim", 768, path)
    targets = section.get("pred_layer_id", list(range(1, tasks + 1)))
    if not isinstance(targets, list) or len(targets) != tasks or tasks < 2 or not all(type(n) is int for n in targets):
        raise RdError(f"{path}: pred_layer_id {plain_text(targets)} does not name {tasks} layers, two or more")
    kernel = _number(section, "conv_pos", 128, path)
    shape = StudentConfig(
        conv_layers=tuple(parse_list(section.get("extractor_conv_feature_layers", _CONV), where="conv layers")),
        width=width,
        ffn_width=_number(section, "encoder_ffn_embed_dim", 3072, path),
        heads=_number(section, "encoder_attention_heads", 12, path),
        layers=_number(section, "encoder_layers", 1, path),
        position_kernel=kernel,
        position_groups=_number(section, "conv_pos_groups", 16, path),
        lookahead_frames=(kernel - 1) // 2,
        head_width=_number(section, "final_dim", 768, path),
        head_kind="split",
        head_targets=tuple(targets),
        frame_norm=False,
        mask_embedding=False,
        input_dropout=0.0,
    )
    return build_strictly(shape, {_split_name(k): v for k, v in data["Distiller"].items()}, where=str(path))


def _split_name(name: str) -> str:
    return name.replace("output_layer.0.", "split_heads.inner.").replace("output_layer.2.", "split_heads.")


def _check(section: dict[str, Any], required: dict[str, Any], where: Path) -> None:
    for key, expected in required.items():
        if section.get(key, expected) != expected:
            raise RdError(f"{where}: {key} is {plain_text(section[key])}, only {expected!r} is supported")


def _number(section: dict[str, Any], key: str, default: int, where: Path) -> int:
    value = section.get(key, default)
    if type(value) is not int or not 0 < value < 100_000:
        raise RdError(f"{where}: {key} is {plain_text(value)}, a positive whole number is needed")
    return value
