"""A foreign encoder as it stands in its files: configuration, weights, heads and the level of its input.

Whatever the file, the configuration is in transformers' words and the weights have the names of transformers' encoder.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ
from reuse_distill.student.checkpoints.unpickle import read_torch_file
from reuse_distill.student.foreign.fairseq import read_fairseq
from reuse_distill.student.foreign.fields import HONOURED, flag, honoured_fields
from reuse_distill.student.foreign.foreign_files import head_kind, heads_in, read_json, read_weights, weight_files
from reuse_distill.student.foreign.melhubert import KIND as MELHUBERT
from reuse_distill.student.foreign.melhubert import STATISTICS, holds_melhubert, read_melhubert
from torch import Tensor

# Name of the encoder inside a model with a head -> what is cut off.
_PREFIXES = ("hubert.", "wavlm.", "wav2vec2.", "unispeech_sat.", "data2vec_audio.", "model.")
PREPROCESSOR, VOCABULARY = "preprocessor_config.json", "vocab.json"
TRANSFORMERS_EPSILON, FAIRSEQ_EPSILON = 1e-7, 1e-5
_HASH_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class ForeignCheckpoint:
    """What ``read_foreign`` returns."""

    name: str
    kind: str  # hubert, wavlm, …: model_type
    config: dict[str, Any]  # as in config.json
    fields: dict[str, Any]  # those that shape the encoder
    weights: dict[str, Tensor]  # of the encoder, under transformers' names
    heads: dict[str, dict[str, Tensor]]  # kind -> parameters beside the encoder
    normalise_input: float | None  # zero mean and unit variance per utterance, with this added to the variance
    level_from: str  # where that is known from, for a log
    sha256: str  # of the files of weights
    preprocessor: dict[str, Any] = field(default_factory=dict)
    vocabulary: dict[str, Any] = field(default_factory=dict)  # vocab.json of a CTC head: label -> number


def is_foreign(path: Path) -> bool:
    """Whether ``path`` is a folder whose config.json names a transformers model."""
    try:
        config = read_json(path / "config.json") if path.is_dir() else {}
    except RdError:
        return False
    return "model_type" in config and "student" not in config  # ours have both


def fetch_hint(name: str) -> str | None:
    """How to get ``name`` where it is ORG/NAME of a hub and no path; None for anything else."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return None
    folder = name.split("/")[1]
    return f"fetch it first: hf download {name} --local-dir {folder}  (then give {folder})"


def read_foreign(path: Path) -> ForeignCheckpoint:
    """The encoder in a transformers folder, or in a file of fairseq HuBERT, of WavLM or of MelHuBERT.

    Raises RdError for anything damaged or missing, an unknown kind, and a setting that is not supported.
    """
    return _of_folder(path) if path.is_dir() else _of_file(path)


def _of_folder(folder: Path) -> ForeignCheckpoint:
    if not (folder / "config.json").is_file():
        raise RdError(f"{folder} has no config.json", hint="a transformers folder has config.json and weights")
    config = read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind not in HONOURED:
        raise RdError(
            f"{folder / 'config.json'}: model_type {config.get('model_type')!r} is not a known encoder",
            hint=nearest(kind, list(HONOURED)),
        )
    fields = honoured_fields(config, folder / "config.json")
    files = weight_files(folder)
    weights = {_plain(name): value for name, value in read_weights(files, _is_read).items()}
    heads = heads_in(weights)
    encoder = {name: value for name, value in weights.items() if head_kind(name) is None}
    preprocessor = read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    level, level_from = _level(fields, preprocessor, folder)
    return ForeignCheckpoint(
        folder.resolve().name,
        kind,
        config,
        fields,
        encoder,
        heads,
        level,
        level_from,
        sha256_of(files),
        preprocessor,
        read_json(folder / VOCABULARY) if "ctc" in heads and (folder / VOCABULARY).is_file() else {},
    )


def _of_file(file: Path) -> ForeignCheckpoint:
    data = read_torch_file(file)
    if holds_melhubert(data):
        return _melhubert(file, data)
    config, weights, normalise = read_fairseq(file, data)
    return ForeignCheckpoint(
        file.stem,
        config["model_type"],
        config,
        honoured_fields(config, file),
        {name: value for name, value in weights.items() if head_kind(name) is None},
        heads_in(weights),
        FAIRSEQ_EPSILON if normalise else None,
        f"task.normalize of {file.name}",
        sha256_of([file]),
    )


def _melhubert(file: Path, data: dict[str, Any]) -> ForeignCheckpoint:
    settings, weights = read_melhubert(file, data)
    return ForeignCheckpoint(
        file.stem,
        MELHUBERT,
        settings,
        settings,
        {name: value for name, value in weights.items() if head_kind(name) is None},
        heads_in(weights),
        None,
        f"its log-mel is normalised by {STATISTICS}",
        sha256_of([file]),
    )


def _is_read(name: str) -> bool:
    """Decoders are large and of no use: not even read."""
    return head_kind(_plain(name)) != "decoder"


def _plain(name: str) -> str:
    return next((name[len(prefix) :] for prefix in _PREFIXES if name.startswith(prefix)), name)


def _level(fields: dict[str, Any], preprocessor: dict[str, Any], folder: Path) -> tuple[float | None, str]:
    """Whether audio is normalised per utterance: as the folder says, else as models of its kind were trained."""
    where = folder / PREPROCESSOR
    rate = preprocessor.get("sampling_rate", SAMPLE_RATE_HZ)
    if rate != SAMPLE_RATE_HZ:
        raise RdError(f"{where}: sampling_rate is {rate!r:.40}, encoders of {SAMPLE_RATE_HZ} Hz are supported")
    if preprocessor.get("feature_size", 1) != 1 and "num_mel_bins" not in fields:
        raise RdError(f"{where}: feature_size is {preprocessor['feature_size']!r:.40}, one sample at a time is needed")
    if "do_normalize" in preprocessor:
        normalised = flag(preprocessor, "do_normalize", where)
        return (TRANSFORMERS_EPSILON if normalised else None), f"do_normalize of {PREPROCESSOR}"
    if "num_mel_bins" in fields:
        return None, "Whisper's log-mel"
    if preprocessor:  # transformers' default of the feature extractor
        return TRANSFORMERS_EPSILON, f"the default of {PREPROCESSOR}"
    # Models with a norm in every convolution were trained on normalised audio, others not.
    everywhere = fields.get("feat_extract_norm", "layer") == "layer"
    return (TRANSFORMERS_EPSILON if everywhere else None), f"its kind, there is no {PREPROCESSOR}"


def sha256_of(files: list[Path]) -> str:
    """Hex SHA-256 of the files one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(_HASH_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
