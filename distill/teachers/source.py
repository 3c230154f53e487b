"""Open a teacher from a local path or a torchaudio bundle; nothing in the files is executed.

Teachers from torchaudio's bundles: ``torchaudio:HUBERT_BASE``, ``torchaudio:WAVLM_BASE``, …

The bundle's model is read for its shapes and weights, which become those of the transformers model of the same
architecture: from there on it is a teacher like any other. torchaudio fetches a bundle's weights on first use and keeps
them in its cache; nothing else of this package downloads anything. The weights come without a mask embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from reuse_distill.distill.teachers.frozen import FrozenTeacher
from reuse_distill.distill.teachers.protocol import FrameRule, Teacher, TeacherInfo, check_frame_rate
from reuse_distill.distill.teachers.student_teacher import StudentTeacher
from reuse_distill.distill.teachers.transformers_model import load_fairseq, load_folder, load_strictly, transformers
from reuse_distill.distill.teachers.whisper_teacher import WINDOW_FRAMES, WhisperTeacher
from reuse_distill.runtime.bundle_format.bundle import file_sha256
from reuse_distill.runtime.errors import RdError, install_hint, nearest
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ
from reuse_distill.student import load_checkpoint
from reuse_distill.student.checkpoints.checkpoint import WEIGHTS, is_checkpoint, state_sha256
from reuse_distill.student.foreign import read_foreign, student_of
from reuse_distill.student.foreign.foreign_checkpoint import FAIRSEQ_EPSILON, fetch_hint
from reuse_distill.student.foreign.melhubert import KIND as MELHUBERT
from torch import Tensor

PREFIX = "torchaudio:"


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


def load_bundle(source: str, *, attention: str | None) -> tuple[Any, str, float | None]:
    """(transformers model, sha256 of the weights, what is added to the variance of normalised audio) of a bundle.

    ``source``: ``torchaudio:NAME``.
    Raises RdError where torchaudio is missing, for an unknown bundle, one that is no encoder of the wav2vec 2.0 family
    at 16 kHz, and weights that cannot be fetched.
    """
    name = source.removeprefix(PREFIX)
    bundle = _bundle(name)
    try:
        model = bundle.get_model()
    except Exception as error:  # the network, the cache, the file
        raise RdError(
            f"torchaudio's bundle {name} cannot be loaded: {error}",
            hint="torchaudio fetches it on first use: be online once, or set TORCH_HOME to a filled cache",
        ) from error
    inner = model.model if hasattr(model, "normalize_waveform") else model
    config = _config(inner, name)
    if attention is not None:
        config._attn_implementation = attention
    converted = _class_of(name)(config)
    weights = _weights(inner)
    load_strictly(converted, weights, source)
    return converted, state_sha256(weights), FAIRSEQ_EPSILON if getattr(model, "normalize_waveform", False) else None


def _bundle(name: str) -> Any:
    try:
        import torchaudio
    except (ImportError, OSError) as error:  # OSError: a build that does not fit torch
        raise RdError(
            f"torchaudio cannot be imported: {error}",
            hint=f"{install_hint('torchaudio')}; torchaudio must be of the version and build of torch",
        ) from None
    pipelines = torchaudio.pipelines
    known = [n for n in dir(pipelines) if n.isupper() and hasattr(getattr(pipelines, n), "get_model")]
    if name not in known:
        raise RdError(f"torchaudio has no bundle {name!r}", hint=nearest(name, known))
    bundle = getattr(pipelines, name)
    if int(getattr(bundle, "sample_rate", 0)) != SAMPLE_RATE_HZ:
        raise RdError(f"bundle {name} is not of a model of {SAMPLE_RATE_HZ} Hz audio")
    return bundle


def _class_of(name: str) -> Any:
    package = transformers()
    known = {"HUBERT": package.HubertModel, "WAVLM": package.WavLMModel}
    return known.get(name.split("_")[0], package.Wav2Vec2Model)


def _config(model: Any, name: str) -> Any:
    """The transformers configuration, read off the modules of torchaudio's model."""
    try:
        convolutions = [block.conv for block in model.feature_extractor.conv_layers]
        norms = [block.layer_norm is not None for block in model.feature_extractor.conv_layers]
        transformer = model.encoder.transformer
        position, first = transformer.pos_conv_embed.conv, transformer.layers[0]
        values = {
            "hidden_size": model.encoder.feature_projection.projection.out_features,
            "num_hidden_layers": len(transformer.layers),
            "num_attention_heads": first.attention.num_heads,
            "intermediate_size": first.feed_forward.intermediate_dense.out_features,
            "conv_dim": [conv.out_channels for conv in convolutions],
            "conv_kernel": [conv.kernel_size[0] for conv in convolutions],
            "conv_stride": [conv.stride[0] for conv in convolutions],
            "conv_bias": convolutions[0].bias is not None,
            "feat_extract_norm": "layer" if all(norms) else "group",
            "do_stable_layer_norm": bool(first.layer_norm_first),
            "num_conv_pos_embeddings": position.kernel_size[0],
            "num_conv_pos_embedding_groups": position.groups,
        }
        if name.startswith("WAVLM"):
            values |= {"num_buckets": first.attention.num_buckets, "max_bucket_distance": first.attention.max_distance}
    except (AttributeError, IndexError, TypeError) as error:
        raise RdError(
            f"bundle {name} is not an encoder of the wav2vec 2.0 family ({error})",
            hint="HUBERT_BASE, WAVLM_BASE, WAV2VEC2_BASE and their larger kin are",
        ) from None
    # No probability of masks: the weights have no mask embedding, and so must the model.
    return _class_of(name).config_class(**values, layerdrop=0.0, mask_time_prob=0.0, mask_feature_prob=0.0)


def _weights(model: Any) -> dict[str, Tensor]:
    """torchaudio's parameters under transformers' names; what recognisers have on top is left out."""
    converted_weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name.startswith("aux."):
            continue
        name = name.replace("encoder.transformer.", "encoder.").replace(
            "encoder.feature_projection.", "feature_projection."
        )
        name = name.replace(".attention.attention.", ".attention.")  # WavLM's is within torch's own
        if ".in_proj_" in name:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                converted_weights[name.replace("in_proj_", f"{part}_proj.")] = third
        else:
            converted_weights[name] = value
    return converted_weights
