"""Teachers from torchaudio's bundles: ``torchaudio:HUBERT_BASE``, ``torchaudio:WAVLM_BASE``, …

The bundle's model is read for its shapes and weights, which become those of the transformers model of the same
architecture: from there on it is a teacher like any other. torchaudio fetches a bundle's weights on first use and keeps
them in its cache; nothing else of this package downloads anything. The weights come without a mask embedding.
"""

from __future__ import annotations

from typing import Any

from reuse_distill.distill.teachers.fairseq_teacher import load_strictly
from reuse_distill.distill.teachers.vendor import transformers
from reuse_distill.runtime.errors import RdError, install_hint, nearest
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ
from reuse_distill.student.checkpoint import state_sha256
from reuse_distill.student.foreign.foreign_checkpoint import FAIRSEQ_EPSILON
from torch import Tensor

PREFIX = "torchaudio:"


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
