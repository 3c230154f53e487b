"""Parameters beside an encoder: pre-training and task heads, recognised by their names in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# Prefix of a parameter -> what it belongs to. Of the kinds in ``TASKS`` a head can be made.
PREFIXES: tuple[tuple[str, str], ...] = (
    ("final_proj.", "projection"),  # ContentVec; fairseq's HuBERT predicts its clusters with it
    ("lm_head.", "ctc"),
    ("projector.", "classify"),
    ("classifier.", "classify"),
    ("layer_weights", "classify"),
    ("tdnn.", "xvector"),
    ("objective.", "xvector"),
    ("feature_extractor.weight", "xvector"),
    ("feature_extractor.bias", "xvector"),
    ("project_q.", "pretraining"),
    ("project_hid.", "pretraining"),
    ("quantizer.", "pretraining"),
    ("speaker_proj.", "pretraining"),
    ("label_embeddings_concat", "pretraining"),
    ("label_embs_concat", "pretraining"),
    ("layer_norm_for_extract.", "pretraining"),
    ("dropout_features.", "pretraining"),
    ("target_glu.", "pretraining"),
    ("decoder.", "decoder"),
    ("proj_out.", "decoder"),
)
TASKS = ("projection", "ctc", "classify", "xvector")


def head_kind(name: str) -> str | None:
    """What the parameter ``name`` beside the encoder belongs to; None for one of the encoder."""
    return next((kind for prefix, kind in PREFIXES if name.startswith(prefix)), None)


def heads_in(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Kind -> parameters by name, of all that stand beside the encoder."""
    heads: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        kind = head_kind(name)
        if kind is not None:
            heads.setdefault(kind, {})[name] = value
    if "xvector" in heads:  # its projector and classifier have the names of a classification head's
        heads["xvector"] |= heads.pop("classify", {})
    return heads


def left_out(heads: Mapping[str, Mapping[str, Tensor]]) -> str:
    """A line for the log on what stands beside the encoder; empty where nothing does."""
    parts = [f"{kind} ({', '.join(sorted({name.split('.')[0] for name in one}))})" for kind, one in heads.items()]
    own = ", --head own exports it" if any(kind in TASKS for kind in heads) else ""
    return f"beside the encoder, not part of it: {'; '.join(parts)}{own}" if parts else ""
