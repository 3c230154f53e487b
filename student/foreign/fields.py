"""The fields of a foreign configuration: each is honoured, known not to change the features, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reuse_distill.runtime.errors import RdError

_SHAPE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "layer_norm_eps": 1e-5,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
}
_NORMS: dict[str, Any] = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
# model_type -> fields that the reader honours, with transformers' defaults.
HONOURED: dict[str, dict[str, Any]] = {
    "hubert": {**_SHAPE, **_NORMS, "feat_proj_layer_norm": True, "conv_pos_batch_norm": False},
    "wav2vec2": {**_SHAPE, **_NORMS},
    "wavlm": {**_SHAPE, **_NORMS, "num_buckets": 320, "max_bucket_distance": 800},
    "unispeech-sat": {**_SHAPE, **_NORMS},
    "data2vec-audio": {**_SHAPE, "num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 19},
    "whisper": {
        "d_model": 384,
        "encoder_layers": 4,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
        "num_mel_bins": 80,
        "max_source_positions": 1500,
    },
}
# Fields that this reader supports with one value only: others change the features.
REQUIRED: dict[str, Any] = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "activation_function": "gelu",
    "add_adapter": False,
    "adapter_attn_dim": None,
    "scale_embedding": False,
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
}
# Fields of training, of heads and of the library. A name that ends with * stands for all that begin so.
_OTHERS = (
    *("model_type", "architectures", "transformers_version", "torch_dtype", "dtype", "_name_or_path", "_commit_hash"),
    *("_attn_implementation*", "attn_implementation", "auto_map", "name_or_path", "tokenizer_class", "processor_class"),
    *("mask_*", "no_mask_*", "apply_spec_augment", "replace_prob", "ctc_*", "xvector_*", "tdnn_*", "num_ctc_classes"),
    *("codevector_dim", "num_codevector*", "proj_codevector_dim", "diversity_loss_weight", "num_negatives"),
    *("contrastive_logits_temperature", "use_weighted_layer_sum", "classifier_proj_size", "num_clusters"),
    *("adapter_kernel_size", "adapter_stride", "num_adapter_layers", "output_hidden_size", "vocab_size"),
    *("layerdrop", "encoder_layerdrop", "decoder_*", "initializer_range", "init_std", "feature_grad_mult"),
    *("freeze_*", "gradient_checkpointing", "chunk_size_feed_forward", "num_feat_extract_layers", "num_labels"),
    *("id2label", "label2id", "finetuning_task", "problem_type", "task_specific_params", "return_dict*"),
    *("output_*", "use_bfloat16", "torchscript", "tf_legacy_loss", "use_return_dict", "use_cache", "tie_*"),
    *("is_encoder_decoder", "cross_attention_hidden_size", "prefix", "suppress_tokens", "begin_suppress_tokens"),
    *("forced_*", "max_target_positions", "median_filter_width", "max_length", "min_length", "do_sample"),
    *("early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p"),
    *("typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "bad_words_ids"),
    *("encoder_no_repeat_ngram_size", "num_return_sequences", "remove_invalid_values", "exponential_decay_*"),
    *("sep_token_id", "pad_token_id", "bos_token_id", "eos_token_id", "decoder", "num_hidden_layers", "do_normalize"),
    "alignment_heads",
)


# Fields that a kind writes and its encoder never reads.
_UNREAD = {"data2vec-audio": ("feat_extract_norm", "do_stable_layer_norm", "conv_pos_batch_norm")}


def honoured_fields(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The fields that shape the encoder, with transformers' defaults where they are left out.

    Raises RdError for an unknown model_type, a value that is not supported, and a field that this reader does not know.
    """
    kind = str(config.get("model_type"))
    shape = HONOURED[kind]
    for name, value in config.items():
        if name in REQUIRED and value != REQUIRED[name] and not (REQUIRED[name] is False and value is None):
            raise RdError(f"{file}: {name} is {value!r:.60}, only {REQUIRED[name]!r} is supported")
        if not (name in shape or name in REQUIRED or value is None or value is False or _is_other(name, kind)):
            raise RdError(
                f"{file}: {name} is {value!r:.60}, and what it changes in a {kind} encoder is not known here",
                hint="remove it from config.json where it does not change the encoder's features",
            )
    return {name: default if config.get(name) is None else config[name] for name, default in shape.items()}


def _is_other(name: str, kind: str) -> bool:
    if name in _UNREAD.get(kind, ()):
        return True
    if name.endswith("dropout") or "_dropout_" in name:
        return True
    return any(name.startswith(one[:-1]) if one.endswith("*") else name == one for one in _OTHERS)


def whole_number(fields: Mapping[str, Any], name: str, where: object, *, most: int = 100_000) -> int:
    """A positive whole number; RdError for anything else."""
    value = fields.get(name)
    if type(value) is not int or not 0 < value <= most:
        raise RdError(f"{where}: {name} is {value!r:.60}, a whole number from 1 to {most} is needed")
    return value


def flag(fields: Mapping[str, Any], name: str, where: object) -> bool:
    """True or false; RdError for anything else."""
    value = fields.get(name)
    if type(value) is not bool:
        raise RdError(f"{where}: {name} is {value!r:.60}, true or false is needed")
    return value


def whole_numbers(fields: Mapping[str, Any], name: str, where: object) -> list[int]:
    """A list of positive whole numbers; RdError for anything else."""
    value = fields.get(name)
    if not isinstance(value, (list, tuple)) or len(value) > 64 or not all(type(n) is int and n > 0 for n in value):
        raise RdError(f"{where}: {name} is {value!r:.60}, a list of whole numbers is needed")
    return list(value)
