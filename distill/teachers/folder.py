"""A transformers folder as a transformers model: ``student.foreign`` reads it, every parameter is used or named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reuse_distill.distill.teachers.fairseq_teacher import load_strictly
from reuse_distill.distill.teachers.vendor import transformers
from reuse_distill.runtime.errors import RdError
from reuse_distill.student.foreign import ForeignCheckpoint, read_foreign

# model_type in config.json -> class in transformers
CLASSES = {
    "hubert": "HubertModel",
    "wavlm": "WavLMModel",
    "wav2vec2": "Wav2Vec2Model",
    "unispeech-sat": "UniSpeechSatModel",
    "data2vec-audio": "Data2VecAudioModel",
}
MASK = "masked_spec_embed"
WHISPER_INPUTS = ((80, 1500), (128, 1500))  # mels and positions of tiny to large-v2, of large-v3


def load_folder(folder: Path, *, attention: str | None) -> tuple[Any, ForeignCheckpoint]:
    """(model, what was read). Pickled weights are read as tensors only: nothing in them is executed.

    Raises RdError for anything missing, unknown, damaged or left over in the folder.
    """
    checkpoint = read_foreign(folder)
    if checkpoint.kind == "whisper":
        return _whisper_encoder(folder, checkpoint, attention=attention), checkpoint
    kind = getattr(transformers(), CLASSES[checkpoint.kind])
    try:
        config = kind.config_class.from_dict(checkpoint.config)
        # Never used, but above 0 the model has a mask embedding.
        config.mask_time_prob, config.mask_feature_prob = (0.65 if MASK in checkpoint.weights else 0.0), 0.0
        if attention is not None:
            config._attn_implementation = attention
        model = kind(config)
    except Exception as error:  # a configuration from anywhere
        raise RdError(f"{folder}/config.json describes no {kind.__name__}: {error}") from error
    load_strictly(model, checkpoint.weights, folder)
    return model, checkpoint


def _whisper_encoder(folder: Path, checkpoint: ForeignCheckpoint, *, attention: str | None) -> Any:
    """The encoder of a folder that holds all of Whisper, or only its encoder."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    try:
        config = transformers().WhisperConfig.from_dict(checkpoint.config)
        if attention is not None:
            config._attn_implementation = attention
        encoder = WhisperEncoder(config)
    except Exception as error:  # a configuration from anywhere
        raise RdError(f"{folder}/config.json describes no Whisper: {error}") from error
    if (config.num_mel_bins, config.max_source_positions) not in WHISPER_INPUTS:
        raise RdError(
            f"{folder}: Whisper with {config.num_mel_bins} mels and {config.max_source_positions} positions",
            hint="80 or 128 mels and 1500 positions are known (tiny to large-v3)",
        )
    weights = {name.removeprefix("encoder."): value for name, value in checkpoint.weights.items()}
    if not weights.keys() & encoder.state_dict().keys():
        raise RdError(f"{folder} has no weights of Whisper's encoder", hint="names such as model.encoder.conv1.weight")
    load_strictly(encoder, weights, folder)
    return encoder
