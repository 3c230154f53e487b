"""Files of transformers, fairseq and WavLM's own format as transformers models.

``student.foreign`` reads them without fairseq and without executing them. Every parameter is used or named in an error.
transformers is imported when it is needed, without the messages of its optional parts.
"""

from __future__ import annotations

import logging
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from reuse_distill.runtime.errors import RdError, install_hint
from reuse_distill.student.foreign import ForeignCheckpoint, read_foreign
from torch import Tensor

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
# torchao, which transformers imports where it is installed, reports kernels of other machines as missing.
CHATTER = ("torchao", "torch.utils._pytree")


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


def load_fairseq(
    checkpoint: ForeignCheckpoint, path: Path, *, attention: str | None = None
) -> tuple[Any, str, float | None]:
    """(transformers model, sha256 of the file, what is added to the variance of normalised audio) of a ``.pt``.

    Raises RdError for keys that are missing or left over.
    """
    package = transformers()
    kind = {"hubert": package.HubertModel, "wavlm": package.WavLMModel}[checkpoint.kind]
    config = kind.config_class(**checkpoint.fields, layerdrop=0.0, mask_time_prob=0.65)
    if attention is not None:
        config._attn_implementation = attention
    model = kind(config)
    load_strictly(model, checkpoint.weights, path)
    return model, checkpoint.sha256, checkpoint.normalise_input


def load_strictly(model: Any, weights: dict[str, Any], path: Path | str) -> None:
    """Give the transformers ``model`` these weights; RdError names what is missing, left over or of another shape."""
    expected: dict[str, Tensor] = model.state_dict()
    renamed = {_renamed(name, expected): value for name, value in weights.items()}
    missing, unknown = sorted(expected.keys() - renamed.keys()), sorted(renamed.keys() - expected.keys())
    shapes = [
        f"{name} is {list(renamed[name].shape)}, needed {list(expected[name].shape)}"
        for name in sorted(expected.keys() & renamed.keys())
        if renamed[name].shape != expected[name].shape
    ]
    for problem, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes)):
        if names:
            examples = "; ".join(names[:5]) + ("; …" if len(names) > 5 else "")
            raise RdError(f"{path}: {len(names)} parameters {problem}: {examples}", hint="is this file complete?")
    model.load_state_dict({name: value.float() for name, value in renamed.items()})


def _renamed(name: str, expected: dict[str, Tensor]) -> str:
    """How torch names weight norm depends on its version."""
    if name not in expected:
        name = name.replace(".conv.weight_g", ".conv.parametrizations.weight.original0")
        name = name.replace(".conv.weight_v", ".conv.parametrizations.weight.original1")
    return name


@cache
def transformers() -> Any:
    """The package; raises RdError that names the extra where it is missing."""
    loggers = [logging.getLogger(name) for name in CHATTER]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        import transformers

        transformers.PreTrainedModel  # noqa: B018  (imported with its optional parts by being named)
    except ImportError as error:
        raise RdError(f"{error.name} is not installed", hint=install_hint("distill")) from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    # Its WavLM gives torch masks of two types, which torch takes and warns of.
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask and attn_mask")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers
