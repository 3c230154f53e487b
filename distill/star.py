"""STaR: distilling speech temporal relation (arXiv 2312.09040). Pure functions of layers.

The temporal Gram matrix of features X (F frames, D channels) is G = X X^T (F x F): which frames resemble which. D
drops out, so teacher and student of different widths compare without a projection head. The normalisation of the
original is not published; ``scale_free`` divides G by D and takes the mean over frame pairs, so that neither width nor
length changes the scale; ``none`` is the plain squared Frobenius norm.

Shapes: B batch, F frames, D channels (teacher's and student's may differ), H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from reuse_distill.distill.recipe import LossSettings
    from reuse_distill.distill.teachers import TeacherPass
    from reuse_distill.student import StudentOutput


def gram(left: Tensor, right: Tensor, *, normalisation: str = "scale_free") -> Tensor:
    """(B, F, D), (B, F, D) -> (B, F, F), in float32 whatever the autocast."""
    with torch.autocast(left.device.type, enabled=False):
        product = left.float() @ right.float().transpose(1, 2)
    return product / left.shape[-1] if normalisation == "scale_free" else product


def gram_distance(
    student: Tensor, teacher: Tensor, padding: Tensor, *, frames: Tensor, normalisation: str = "scale_free"
) -> Tensor:
    """Squared distance of Gram matrices (B, F, F) over pairs of valid frames; ``padding`` (B, F) true = padded.

    Utterances are weighted by their share of ``frames``, the valid frames of the whole step.
    """
    valid = (~padding).to(student.dtype)
    pairs = valid[:, :, None] * valid[:, None, :]
    error = ((student - teacher).square() * pairs).sum((1, 2))  # (B,)
    count = valid.sum(1)
    if normalisation == "scale_free":
        error = error / count.square().clamp(min=1)
    return (error * count).sum() / frames


def attention_distance(student: Tensor, teacher: Tensor, padding: Tensor, *, frames: Tensor) -> Tensor:
    """KL(teacher || student) of head-averaged maps (B, F, F), summed over valid queries, divided by ``frames``."""
    tiny = 1e-8
    student, teacher = student.float(), teacher.float()
    ratio = teacher.clamp(min=tiny).log() - student.clamp(min=tiny).log()
    kl = (teacher * ratio).sum(-1)  # (B, F)
    return (kl * (~padding)).sum() / frames


def star_terms(
    output: StudentOutput,
    teacher: TeacherPass,
    *,
    frames: Tensor,
    normalisation: str,
    intra: bool = True,
    attention: bool = False,
) -> dict[str, Tensor]:
    """Per-layer distances (N,) of each kind: ``layerwise``, ``intra``, ``attention``."""
    ours = _inputs_and_outputs(output.encoder_input, output.layers)
    theirs = _inputs_and_outputs(teacher.entry, list(teacher.layers))
    terms: dict[str, list[Tensor]] = {"layerwise": []}
    for (student_in, student_out), (teacher_in, teacher_out) in zip(ours, theirs, strict=True):
        kinds = {"layerwise": ((student_out, student_out), (teacher_out, teacher_out))}
        if intra:
            kinds["intra"] = ((student_in, student_out), (teacher_in, teacher_out))
        for kind, (left, right) in kinds.items():
            distance = gram_distance(
                gram(*left, normalisation=normalisation),
                gram(*right, normalisation=normalisation),
                output.padding,
                frames=frames,
                normalisation=normalisation,
            )
            terms.setdefault(kind, []).append(distance)
    if attention and teacher.maps is not None:
        pairs = zip(output.maps, teacher.maps, strict=True)
        terms["attention"] = [attention_distance(s.mean(1), t, output.padding, frames=frames) for s, t in pairs]
    return {kind: torch.stack(values) for kind, values in terms.items()}


def weighted_star(
    loss: LossSettings, output: StudentOutput, target: TeacherPass, *, frames: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, named terms): weighted sums over layers of the distances that the settings ask for."""
    terms = star_terms(
        output,
        target,
        frames=frames,
        normalisation=loss.normalisation,
        intra=loss.intra_weight > 0,
        attention=loss.attention_weight > 0,
    )
    weights = {"layerwise": loss.layerwise_weight, "intra": loss.intra_weight, "attention": loss.attention_weight}
    total = sum((weights[kind] * values.sum() for kind, values in terms.items()), frames.new_zeros(()))
    named = {kind: values.sum() for kind, values in terms.items()}
    per_layer = {f"layer_{n}": value for n, value in enumerate(terms["layerwise"].detach(), start=1)}
    return total, {**named, **per_layer}


def _inputs_and_outputs(entry: Tensor, layers: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip([entry, *layers[:-1]], layers, strict=True))
