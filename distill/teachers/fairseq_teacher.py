"""Teachers from fairseq HuBERT files and from WavLM's own format, as transformers models.

``student.foreign`` reads the files without fairseq and without executing them. Every key is used or named in an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reuse_distill.distill.teachers.vendor import transformers
from reuse_distill.runtime.errors import RdError
from reuse_distill.student.foreign import ForeignCheckpoint
from torch import Tensor


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
            shown = "; ".join(names[:5]) + ("; …" if len(names) > 5 else "")
            raise RdError(f"{path}: {len(names)} parameters {problem}: {shown}", hint="is this file complete?")
    model.load_state_dict({name: value.float() for name, value in renamed.items()})


def _renamed(name: str, expected: dict[str, Tensor]) -> str:
    """How torch names weight norm depends on its version."""
    if name not in expected:
        name = name.replace(".conv.weight_g", ".conv.parametrizations.weight.original0")
        name = name.replace(".conv.weight_v", ".conv.parametrizations.weight.original1")
    return name
