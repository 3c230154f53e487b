"""Students that no target has, or has in part, refused before anything is converted."""

from __future__ import annotations

from runtime.errors import RdError
from student import StudentConfig


def check_family(config: StudentConfig, features: str | None) -> str | None:
    """``features`` for this family; DistilHuBERT's heads are for training, its layers are what is exported.

    Raises RdError for a student that reduces time, and for the heads of one that has them all on its last layer.
    """
    if config.time_reduction > 1:
        raise RdError(
            f"this student sees {config.time_reduction} frames as one step (FitHuBERT): artifacts of such students are "
            "not supported",
            hint="it can be evaluated and distilled further; export students with time_reduction 1",
        )
    if config.head_kind == "layerwise":
        return features
    if features == "heads":
        raise RdError(
            f"the heads of this student predict layers {list(config.head_targets)} from its last one (DistilHuBERT): "
            "they are for training and are not exported",
            hint="use --features hidden, what the authors evaluate",
        )
    return "hidden"
