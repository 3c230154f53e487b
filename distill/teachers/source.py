"""Open a teacher from a local path or a torchaudio bundle; nothing in the files is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from reuse_distill.distill.teachers.bundles import PREFIX, load_bundle
from reuse_distill.distill.teachers.fairseq_teacher import load_fairseq
from reuse_distill.distill.teachers.folder import load_folder
from reuse_distill.distill.teachers.frozen import FrozenTeacher
from reuse_distill.distill.teachers.protocol import FrameRule, Teacher, TeacherInfo, check_frame_rate
from reuse_distill.distill.teachers.student_teacher import StudentTeacher
from reuse_distill.distill.teachers.whisper_teacher import WINDOW_FRAMES, WhisperTeacher
from reuse_distill.runtime.bundle import file_sha256
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES
from reuse_distill.student import load_checkpoint
from reuse_distill.student.checkpoint import WEIGHTS, is_checkpoint
from reuse_distill.student.foreign import read_foreign, student_of
from reuse_distill.student.foreign.foreign_checkpoint import fetch_hint
from reuse_distill.student.foreign.melhubert import KIND as MELHUBERT


def open_teacher(
    path: Path | str,
    *,
    frame_rule: FrameRule = "conv",
    statistics: str = "valid",
    attention: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Teacher:
    """A frozen teacher: a transformers folder, a file of fairseq HuBERT, WavLM or MelHuBERT, or ``torchaudio:NAME``.

    A checkpoint folder of ours is a teacher too: a student before it is compressed. attention: ``eager`` where
    attention maps are wanted, otherwise transformers chooses. dtype: float16 or bfloat16 for a CUDA device.
    Raises RdError for anything missing, unknown or left over in the folder.
    """
    folder, bundle = Path(path), str(path).startswith(PREFIX)
    if not (bundle or folder.exists()):
        raise RdError(
            f"there is no teacher at {folder}",
            hint=fetch_hint(str(path))
            or "give a folder with config.json and weights (models of a hub: download them first), a .pt file, "
            "torchaudio:BUNDLE, or a student's folder, such as student/weights/pocket-stream",
        )
    if bundle:
        model, sha256, normalise = load_bundle(str(path), attention=attention)
    elif folder.is_file():
        foreign = read_foreign(folder)
        if foreign.kind == MELHUBERT:
            return StudentTeacher(student_of(foreign).to(dtype), foreign.name, foreign.kind, foreign.sha256)
        model, sha256, normalise = load_fairseq(foreign, folder, attention=attention)
    elif is_checkpoint(folder):
        name, sha256 = folder.resolve().name, file_sha256(folder / WEIGHTS)
        return StudentTeacher(load_checkpoint(folder).to(dtype), name, "student", sha256)
    else:
        model, checkpoint = load_folder(folder, attention=attention)
        if checkpoint.kind == "whisper":
            return _whisper(folder.resolve().name, model.to(dtype), checkpoint.sha256, dtype)
        sha256, normalise = checkpoint.sha256, checkpoint.normalise_input
    info = _info(str(path) if bundle else folder.stem if folder.is_file() else folder.resolve().name, model, sha256)
    check_frame_rate(info.name, info.hop_samples, info.receptive_field_samples)
    model = model.to(dtype)
    _check_finite(info.name, model, dtype)
    return FrozenTeacher(model, info, frame_rule=frame_rule, statistics=statistics, normalise=normalise)


def _whisper(name: str, encoder: Any, sha256: str, dtype: torch.dtype) -> Teacher:
    config = encoder.config
    info = TeacherInfo(
        name=name,
        kind="whisper",
        layers=config.encoder_layers,
        width=config.d_model,
        heads=config.encoder_attention_heads,
        hop_samples=HOP_SAMPLES,
        receptive_field_samples=RECEPTIVE_FIELD_SAMPLES,
        parameters=sum(p.numel() for p in encoder.parameters()),
        sha256=sha256,
        pre_norm=True,
        window_frames=WINDOW_FRAMES,
    )
    _check_finite(name, encoder, dtype)
    return WhisperTeacher(encoder, info)


def _check_finite(name: str, model: torch.nn.Module, dtype: torch.dtype) -> None:
    broken = [key for key, value in model.named_parameters() if not bool(torch.isfinite(value).all())]
    if broken:
        raise RdError(
            f"teacher {name}: {len(broken)} parameters are not finite in {str(dtype).removeprefix('torch.')}: "
            + ", ".join(broken[:3]),
            hint="get its weights again, or training.teacher_precision=float32 where float16 cannot hold them",
        )


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
        pre_norm=bool(getattr(config, "do_stable_layer_norm", False)),
    )
