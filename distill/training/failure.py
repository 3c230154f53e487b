"""A step whose loss or gradient is not finite: keep its batches, and stop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from reuse_distill.distill.data.batches import Batch
from reuse_distill.distill.training.terms import Draws
from reuse_distill.runtime.errors import RdError


def stop_if_not_finite(
    row: Mapping[str, float],
    losses: Sequence[float],
    group: Sequence[tuple[Batch, Draws]],
    *,
    output: Path,
    rank: int,
    scaled: bool,
) -> None:
    """Raise RdError where ``row`` has a loss or gradient norm that is not finite, with this process's batches kept.

    losses: one per batch of ``group``, in this process. group: batches and what was drawn for them. scaled: whether a
    gradient scaler looks after gradients that overflow (float16), so that only the loss counts.
    """
    named = [name for name in ("loss", "grad_norm")[: 1 if scaled else 2] if not math.isfinite(row[name])]
    if not named:
        return
    step, what = round(row["step"]), {"loss": "loss", "grad_norm": "norm of the gradients"}[named[0]]
    broken = [pair for pair, loss in zip(group, losses, strict=True) if not math.isfinite(loss)]
    if named[0] == "grad_norm":
        broken = list(group)  # which of them it was cannot be told
    paths = [
        _keep(output / f"failed_step_{step}_rank_{rank}{f'_batch_{n}' if n else ''}.npz", *pair)
        for n, pair in enumerate(broken)
    ]
    where = (
        f"its batch is kept in {', '.join(map(str, paths))}" if paths else "in another process, which keeps its batch"
    )
    raise RdError(
        f"the {what} is {row[named[0]]} at step {step}; {where}",
        hint="lower optimiser.lr or optimiser.clip_norm, look for damaged audio in the batch, or, where a teacher "
        "overflows in float16, training.teacher_precision=bfloat16",
    )


def _keep(path: Path, batch: Batch, draws: Draws) -> Path:
    with path.open("wb") as stream:
        np.savez(
            stream,
            wave=batch.wave.numpy(),
            clean=batch.for_teacher.numpy(),
            lengths=batch.lengths.numpy(),
            mask=np.zeros(0, bool) if draws.mask is None else draws.mask.numpy(),
            files=np.array(batch.names),
        )
    return path
