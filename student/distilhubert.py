"""Public DistilHuBERT checkpoints -> Student: s3prl's own file, or the folder that transformers reads.

s3prl's file holds its configuration and the heads. The transformers folder (a HubertModel of two layers) has no heads;
its layers are the features. Nothing in the files is executed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from reuse_distill.runtime.errors import RdError
from reuse_distill.student.config import StudentConfig
from reuse_distill.student.model import Student
from reuse_distill.student.public import build_strictly, parse_list
from reuse_distill.student.transformers_names import student_name
from reuse_distill.student.unpickle import read_torch_file
from torch import Tensor

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
_HUBERT: dict[str, Any] = {
    "model_type": "hubert",
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "do_stable_layer_norm": False,
    "conv_bias": False,
}


def load_distilhubert(path: str | os.PathLike[str]) -> Student:
    """Student (eval mode, float32) of s3prl's checkpoint file or of a transformers folder.

    Raises RdError for damaged files, settings that are not supported, and keys that do not fit.
    """
    place = Path(path)
    return _of_folder(place) if place.is_dir() else _of_file(place)


def is_transformers_folder(path: Path) -> bool:
    """Whether ``path`` is a folder whose config.json names a transformers model."""
    try:
        return "model_type" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def holds_distilhubert(path: Path) -> bool:
    """Whether the file ``path`` is s3prl's checkpoint, which has its configuration in it."""
    try:
        data = read_torch_file(path)
    except RdError:
        return False
    return isinstance(data, dict) and {"Config", "Distiller"} <= data.keys()


def _of_file(path: Path) -> Student:
    data = read_torch_file(path)
    config = data.get("Config") if isinstance(data, dict) else None
    section = config.get("distiller") if isinstance(config, dict) else None
    if not isinstance(section, dict) or not isinstance(data.get("Distiller"), dict):
        raise RdError(f"{path}: there is no 'Distiller' with its 'Config'", hint="give s3prl's DistilHuBERT checkpoint")
    _check(section, _REQUIRED, path)
    tasks, width = _number(section, "n_tasks", 12, path), _number(section, "encoder_embed_dim", 768, path)
    targets = section.get("pred_layer_id", list(range(1, tasks + 1)))
    if not isinstance(targets, list) or len(targets) != tasks or tasks < 2 or not all(type(n) is int for n in targets):
        raise RdError(f"{path}: pred_layer_id {targets!r:.60} does not name {tasks} layers, two or more")
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


def _of_folder(folder: Path) -> Student:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RdError(f"{folder}/config.json cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise RdError(f"{folder}/config.json is no object")
    _check(config, _HUBERT, folder)
    kernel = _number(config, "num_conv_pos_embeddings", 128, folder)
    try:
        convolutions = zip(config["conv_dim"], config["conv_kernel"], config["conv_stride"], strict=True)
        conv_layers = tuple((int(c), int(k), int(s)) for c, k, s in convolutions)
    except (KeyError, TypeError, ValueError) as error:
        raise RdError(f"{folder}/config.json: its convolutions cannot be read ({error})") from None
    shape = StudentConfig(
        conv_layers=conv_layers,
        width=_number(config, "hidden_size", 768, folder),
        ffn_width=_number(config, "intermediate_size", 3072, folder),
        heads=_number(config, "num_attention_heads", 12, folder),
        layers=_number(config, "num_hidden_layers", 12, folder),
        position_kernel=kernel,
        position_groups=_number(config, "num_conv_pos_embedding_groups", 16, folder),
        lookahead_frames=(kernel - 1) // 2,
        head_width=None,
        frame_norm=config.get("feat_proj_layer_norm", True) is True,
        mask_embedding=False,
        input_dropout=0.0,
    )
    state = {student_name(key): value for key, value in _folder_weights(folder).items()}
    state.pop("mask_emb", None)  # of no use without a masked pre-training; DistilHuBERT never had one
    if shape.conv_layers[-1][0] == shape.width:
        raise RdError(f"{folder}: a student of width {shape.width} has no projection of its frames, transformers does")
    return build_strictly(shape, state, where=str(folder))


def _folder_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    try:
        state = load_file(safe) if safe.is_file() else read_torch_file(pickled)
    except (SafetensorError, OSError) as error:
        raise RdError(f"{safe}: damaged or cut short ({error})", hint="copy it again") from None
    if not isinstance(state, dict):
        raise RdError(f"{pickled} holds no parameters")
    return {str(key).removeprefix("hubert."): value for key, value in state.items()}


def _split_name(name: str) -> str:
    return name.replace("output_layer.0.", "split_heads.inner.").replace("output_layer.2.", "split_heads.")


def _check(section: dict[str, Any], required: dict[str, Any], where: Path) -> None:
    for key, wanted in required.items():
        if section.get(key, wanted) != wanted:
            raise RdError(f"{where}: {key} is {section[key]!r:.60}, only {wanted!r} is supported")


def _number(section: dict[str, Any], key: str, default: int, where: Path) -> int:
    value = section.get(key, default)
    if type(value) is not int or not 0 < value < 100_000:
        raise RdError(f"{where}: {key} is {value!r:.60}, a positive whole number is needed")
    return value
