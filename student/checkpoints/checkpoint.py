"""Checkpoint folders: ``config.json`` + ``model.safetensors`` (+ ``training.json``), what distill hands to export.

Weights stored in int8 are half the size of float16 on the disk, floats again once loaded. Every matrix (two dimensions
or more) of at least 1024 values is stored as int8 beside NAME.int8_scale, one float32 for each row (output channel):
weight = int8 x scale, symmetric, 127 for the largest of the row. What is smaller is float16.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ
from reuse_distill.runtime.untrusted_input import from_dict, to_dict
from reuse_distill.runtime.whole_files import folder_beside, with_usual_modes
from reuse_distill.student.checkpoints.public import build_strictly
from reuse_distill.student.config import StudentConfig
from reuse_distill.student.model import Student
from torch import Tensor

SCHEMA_VERSION = 1
CONFIG, WEIGHTS, TRAINING = "config.json", "model.safetensors", "training.json"
# A checkpoint folder is one for transformers too, once ``reuse_distill.hf`` has been imported.
MODEL_TYPE, PREPROCESSOR = "reuse-distill", "preprocessor_config.json"
EXTRACTOR = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "do_normalize": False,  # a student that wants it does so itself
    "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": SAMPLE_RATE_HZ,
}
SCALE = ".int8_scale"
LEAST = 1024  # values of a matrix that is worth it
LARGEST = 127


def save_checkpoint(
    folder: str | os.PathLike[str],
    student: Student,
    *,
    provenance: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    int8: bool = False,
) -> Path:
    """Write a checkpoint folder whole or not at all (temporary folder, then rename); replaces an older one.

    ``provenance`` says where the weights come from, ``training`` is the recipe, data hashes, losses and versions.
    ``int8``: matrices are stored in int8 (see this file's top); ``reuse_distill.hf`` reads them for transformers.
    Raises RdError when the disk is full, the folder cannot be written, or it holds something else than a checkpoint.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = Path(folder)
    _check_replaceable(target)
    config = {
        "schema_version": SCHEMA_VERSION,
        "model_type": MODEL_TYPE,
        "architectures": ["ReuseDistillModel"],
        "student": to_dict(student.config),
        "provenance": provenance or {},
    }
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder_beside(target)
        _write_json(temporary / CONFIG, config)
        _write_json(temporary / PREPROCESSOR, EXTRACTOR)
        state = {name: value.detach().cpu() for name, value in student.state_dict().items()}
        stored = packed(state) if int8 else state
        save_file({name: value.contiguous() for name, value in stored.items()}, temporary / WEIGHTS)
        if training is not None:
            _write_json(temporary / TRAINING, training)
        _replace(with_usual_modes(temporary), target)
    except (OSError, SafetensorError) as error:
        raise RdError(
            f"{target}: checkpoint not written ({getattr(error, 'strerror', None) or error})",
            hint="free some disk space, or give a folder that can be written",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def load_checkpoint(folder: str | os.PathLike[str]) -> Student:
    """Student in eval mode from a checkpoint folder.

    Raises RdError for a missing or damaged file, another schema version, or keys and shapes that do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder)
    config = read_config(path)
    weights = path / WEIGHTS
    if not weights.is_file():
        raise RdError(f"{path}: {WEIGHTS} is missing", hint="copy the whole checkpoint folder")
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise RdError(f"{weights}: damaged or cut short ({error})", hint="copy the checkpoint again") from None
    return build_strictly(config, unpacked(state, where=str(weights)), where=str(weights))


def read_config(folder: str | os.PathLike[str]) -> StudentConfig:
    """The StudentConfig of a checkpoint folder."""
    return from_dict(StudentConfig, _read_config_file(Path(folder))["student"], where=f"{folder}/{CONFIG}: student")


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` is a checkpoint folder of ours, whatever its schema version."""
    try:
        data = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and "student" in data and (folder / WEIGHTS).is_file()


def read_provenance(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Where the weights come from, as its writer recorded."""
    provenance = _read_config_file(Path(folder)).get("provenance", {})
    return provenance if isinstance(provenance, dict) else {}


def _read_config_file(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise RdError(
            f"{folder}: not a checkpoint folder, there is no {CONFIG}",
            hint="rd-distill writes them: RUN/student, RUN/best/step-…",
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RdError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise RdError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(data, dict) or "student" not in data:
        raise RdError(f"{file}: there is no section 'student'")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise RdError(f"{file}: schema version {data.get('schema_version')}, this version reads {SCHEMA_VERSION}")
    return data


def _check_replaceable(target: Path) -> None:
    """Only a checkpoint or an empty folder is replaced: whatever else stands there is not ours to delete."""
    if not target.exists():
        return
    others = [] if target.is_dir() else [target.name]
    if target.is_dir():
        others = [
            entry.name for entry in target.iterdir() if entry.name not in (CONFIG, WEIGHTS, TRAINING, PREPROCESSOR)
        ]
    if others:
        raise RdError(
            f"{target}: not replaced, it holds {', '.join(sorted(others)[:5])}, which is not part of a checkpoint",
            hint="give a folder of its own for the checkpoint",
        )


def _write_json(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace(temporary: Path, target: Path) -> None:
    old = temporary.with_name(f"{temporary.name}.old")
    if target.exists():
        target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of weights by their names, as float32, wherever they lie and in whatever order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().to(torch.float32).numpy().tobytes())
    return digest.hexdigest()


def packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state as it is stored."""
    stored: dict[str, Tensor] = {}
    for name, value in state.items():
        if value.ndim < 2 or value.numel() < LEAST:
            stored[name] = value.half()
            continue
        scale = (value.float().flatten(1).abs().amax(1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        stored[name] = (value.float() / _per_row(scale, value)).round().to(torch.int8)
        stored[name + SCALE] = scale
    return stored


def unpacked(state: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """The state as float32 where it was ``packed``, as it is otherwise.

    Raises RdError for int8 without a scale, and for a scale of something else, of another length or not finite.
    """
    scales = {name.removesuffix(SCALE): value for name, value in state.items() if name.endswith(SCALE)}
    weights = {name: value for name, value in state.items() if not name.endswith(SCALE)}
    lonely = [name for name, value in weights.items() if value.dtype == torch.int8 and name not in scales]
    lonely += [name for name in scales if name not in weights or weights[name].dtype != torch.int8]
    if lonely:
        raise RdError(f"{where}: int8 weights and scales do not belong together: {', '.join(lonely[:3])}")
    for name, scale in scales.items():
        rows = weights[name].shape[:1]
        if scale.shape != rows or not bool(torch.isfinite(scale.float()).all()):
            raise RdError(f"{where}: {name}{SCALE} is {list(scale.shape)} or not finite, expected {list(rows)} numbers")
        weights[name] = weights[name].float() * _per_row(scale.float(), weights[name])
    return weights


def is_packed(weights: Path) -> bool:
    """Whether a file of weights holds int8."""
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as stored:
        return any(name.endswith(SCALE) for name in stored.keys())  # noqa: SIM118


def _per_row(scale: Tensor, value: Tensor) -> Tensor:
    """[rows] -> [rows, 1, ...] with the dimensions of ``value``."""
    return scale.reshape(-1, *[1] * (value.ndim - 1))
