"""A transformers folder as a model: config.json and weights, of which every parameter is used or named in the error."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reuse_distill.distill.teachers.vendor import transformers
from reuse_distill.runtime.errors import RdError, nearest

# model_type in config.json -> class in transformers
CLASSES = {
    "hubert": "HubertModel",
    "wavlm": "WavLMModel",
    "wav2vec2": "Wav2Vec2Model",
    "unispeech-sat": "UniSpeechSatModel",
    "data2vec-audio": "Data2VecAudioModel",
    "whisper": "WhisperModel",  # of which only the encoder is read
}
# Parameters of pre-training and task heads, which a feature teacher does not need.
HEADS = (
    *("lm_head.", "project_q.", "project_hid.", "quantizer.", "classifier.", "projector.", "speaker_proj."),
    *("label_embeddings_concat", "layer_norm_for_extract."),  # UniSpeech-SAT as published
    *("layer_weights", "tdnn.", "objective.", "feature_extractor.weight", "feature_extractor.bias"),  # x-vectors
)
# As transformers looks for them; the second of a pair lists the files that the weights are spread over.
WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
MASK = "masked_spec_embed"
WHISPER_INPUTS = ((80, 1500), (128, 1500))  # mels and positions of tiny to large-v2, of large-v3
WHISPER_LEFT_OUT = ("decoder.", "proj_out.")
DAMAGED = "the file is damaged or cut short: copy it again"


def load_folder(folder: Path, *, attention: str | None) -> tuple[Any, list[Path]]:
    """(model, its weight files). Pickled weights are read as tensors only: nothing in them is executed.

    Raises RdError for anything missing, unknown, damaged or left over in the folder.
    """
    kind = _model_type(folder)
    name = CLASSES[kind]
    files = _weight_files(folder)
    if kind == "whisper":
        return _whisper_encoder(folder, files, attention=attention), files
    try:
        model, report = getattr(transformers(), name).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=files[0].suffix == ".safetensors",
            weights_only=True,
            output_loading_info=True,
            mask_time_prob=0.65,  # never used, but above 0 the model has a mask embedding
            **({} if attention is None else {"attn_implementation": attention}),
        )
    except pickle.UnpicklingError:
        raise RdError(
            f"{folder} is not opened: {files[0].name} holds more than tensors, or is damaged",
            hint="nothing in a file is executed; get the weights as safetensors",
        ) from None
    except Exception as error:  # transformers, safetensors and torch raise many kinds for a damaged folder
        raise RdError(f"{folder} cannot be loaded as {name}: {error}", hint=DAMAGED) from error
    if MASK in report["missing_keys"]:  # it then teaches whatever needs no masked input
        setattr(model, MASK, None)
    _check_report(folder, report)
    return model, files


def _whisper_encoder(folder: Path, files: Sequence[Path], *, attention: str | None) -> Any:
    """The encoder of a folder that holds all of Whisper, or only its encoder."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    try:
        config = transformers().WhisperConfig.from_pretrained(folder)
        if attention is not None:
            config._attn_implementation = attention
        encoder = WhisperEncoder(config)
    except Exception as error:  # a configuration from anywhere
        raise RdError(f"{folder}/config.json describes no Whisper: {error}", hint=DAMAGED) from error
    if (config.num_mel_bins, config.max_source_positions) not in WHISPER_INPUTS:
        raise RdError(
            f"{folder}: Whisper with {config.num_mel_bins} mels and {config.max_source_positions} positions",
            hint="80 or 128 mels and 1500 positions are known (tiny to large-v3)",
        )
    weights: dict[str, Any] = {}
    for file in files:
        weights |= {_encoder_name(name): value.float() for name, value in _tensors(file).items()}
    weights = {name: value for name, value in weights.items() if not name.startswith(WHISPER_LEFT_OUT)}
    expected = encoder.state_dict()
    if not weights.keys() & expected.keys():
        raise RdError(f"{folder} has no weights of Whisper's encoder", hint="names such as model.encoder.conv1.weight")
    shapes = [n for n in weights if n in expected and weights[n].shape != expected[n].shape]
    _check_report(
        folder,
        {
            "missing_keys": expected.keys() - weights.keys(),
            "unexpected_keys": weights.keys() - expected.keys(),
            "mismatched_keys": shapes,
        },
    )
    encoder.load_state_dict(weights)
    return encoder


def _encoder_name(name: str) -> str:
    return name.removeprefix("model.").removeprefix("encoder.")


def _tensors(file: Path) -> dict[str, Any]:
    """The tensors of a weights file; nothing in it is executed."""
    import torch
    from safetensors.torch import load_file

    try:
        return (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError:
        raise RdError(
            f"{file} is not opened: it holds more than tensors, or is damaged",
            hint="nothing in a file is executed; get the weights as safetensors",
        ) from None
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise RdError(f"{file} cannot be read: {error}", hint=DAMAGED) from None


def _model_type(folder: Path) -> str:
    path = folder / "config.json"
    if not path.is_file():
        raise RdError(f"{folder} has no config.json", hint="a transformers folder has config.json and weights")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise RdError(f"{path} is not JSON: {error}") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in CLASSES:
        raise RdError(f"{path}: model_type {kind!r} is not a known teacher", hint=nearest(str(kind), list(CLASSES)))
    return str(kind)


def _weight_files(folder: Path) -> list[Path]:
    """Those that transformers will read. Raises RdError where there are none, or some of them are missing."""
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise RdError(f"{folder} has no weights", hint=f"one of {', '.join(WEIGHTS)}")
    if found.suffix != ".json":
        return [found]
    try:
        names = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise RdError(f"{found} is not an index of weights: {error}", hint=DAMAGED) from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        shown = ", ".join(missing[:3]) or "all"
        raise RdError(
            f"{folder}: {len(missing)} of {len(names)} files of weights are missing: {shown}", hint="copy them"
        )
    return [folder / name for name in names]


def _check_report(folder: Path, report: dict[str, Any]) -> None:
    left_out = {"missing_keys": (MASK,), "unexpected_keys": HEADS, "mismatched_keys": ()}
    for problem, known in left_out.items():
        names = [str(name) for name in report.get(problem, ()) if not str(name).startswith(known)]
        if names:
            shown = ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "")
            raise RdError(
                f"{folder}: {len(names)} {problem.replace('_', ' ')}: {shown}",
                hint="config.json and the weights belong to different models",
            )
