"""Open a teacher from a local path or a torchaudio bundle; nothing in the files is executed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from distill.teachers.bundles import PREFIX, load_bundle
from distill.teachers.fairseq import load_fairseq
from distill.teachers.frozen import FrozenTeacher
from distill.teachers.protocol import FrameRule, Teacher, TeacherInfo, check_frame_rate
from distill.teachers.vendor import transformers
from runtime.errors import RdError, nearest

# model_type in config.json -> class in transformers
CLASSES = {
    "hubert": "HubertModel",
    "wavlm": "WavLMModel",
    "wav2vec2": "Wav2Vec2Model",
    "unispeech-sat": "UniSpeechSatModel",
    "data2vec-audio": "Data2VecAudioModel",
}
# Parameters of pre-training and task heads, which a feature teacher does not need.
HEADS = ("lm_head.", "project_q.", "project_hid.", "quantizer.", "classifier.", "projector.", "speaker_proj.")


def open_teacher(
    path: Path | str,
    *,
    frame_rule: FrameRule = "conv",
    statistics: str = "valid",
    attention: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Teacher:
    """A frozen teacher from a transformers folder, a ``.pt`` of fairseq HuBERT or of WavLM, or ``torchaudio:NAME``.

    attention: ``eager`` where attention maps are wanted, otherwise transformers chooses. dtype: float16 or
    bfloat16 for a CUDA device.
    Raises RdError for anything missing, unknown or left over in the folder.
    """
    folder, bundle = Path(path), str(path).startswith(PREFIX)
    if bundle or folder.is_file():
        if bundle:
            model, sha256, normalise = load_bundle(str(path), attention=attention)
        else:
            model, sha256, normalise = load_fairseq(folder, attention=attention)
        info = _info(str(path) if bundle else folder.stem, model, sha256)
        check_frame_rate(info.name, info.hop_samples, info.receptive_field_samples)
        frozen = model.to(dtype)
        return FrozenTeacher(frozen, info, frame_rule=frame_rule, statistics=statistics, normalise=normalise)
    if not folder.is_dir():
        raise RdError(
            f"there is no teacher at {folder}",
            hint="give a folder with config.json and model.safetensors, a .pt file, torchaudio:BUNDLE, or use "
            "rd-distill make-teacher",
        )
    config = _read_config(folder)
    weights = _weight_files(folder)
    model = _load(folder, config["model_type"], attention=attention).to(dtype)
    info = _info(folder.resolve().name, model, _sha256(weights))
    check_frame_rate(info.name, info.hop_samples, info.receptive_field_samples)
    return FrozenTeacher(
        model,
        info,
        frame_rule=frame_rule,
        statistics=statistics,
        # The family's rule: models with a norm in every conv layer were trained on normalised audio, others not.
        normalise=model.config.feat_extract_norm == "layer",
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise RdError(
            f"{folder} has no config.json", hint="a transformers folder has config.json and model.safetensors"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise RdError(f"{path} is not JSON: {error}") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in CLASSES:
        raise RdError(f"{path}: model_type {kind!r} is not a known teacher", hint=nearest(str(kind), list(CLASSES)))
    return config


def _weight_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        raise RdError(
            f"{folder} has no .safetensors file" + (f", only {', '.join(pickled)}" if pickled else ""),
            hint="pickled weights are not opened; convert them with transformers' save_pretrained first",
        )
    return found


def _load(folder: Path, kind: str, *, attention: str | None) -> Any:
    kinds = transformers()
    try:
        model, report = getattr(kinds, CLASSES[kind]).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **({} if attention is None else {"attn_implementation": attention}),
        )
    except Exception as error:  # transformers and safetensors raise many kinds for a damaged folder
        raise RdError(f"{folder} cannot be loaded as {CLASSES[kind]}: {error}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = [str(name) for name in report.get(problem, ())]
        names = [name for name in names if problem != "unexpected_keys" or not name.startswith(HEADS)]
        if names:
            shown = ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "")
            raise RdError(
                f"{folder}: {len(names)} {problem.replace('_', ' ')}: {shown}",
                hint="config.json and the weights belong to different models",
            )
    return model


def _sha256(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _info(name: str, model: Any, sha256: str) -> TeacherInfo:
    config = model.config
    hop, field = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return TeacherInfo(
        name=name,
        kind=config.model_type,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        hop_samples=hop,
        receptive_field_samples=field,
        parameters=sum(p.numel() for p in model.parameters()),
        sha256=sha256,
    )
