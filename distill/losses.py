"""Distillation losses between layers: pure functions of tensors.

Shapes: N layers, B batch, F frames, C channels of the teacher. ``student`` is a list of (B, F, C), one per layer (the
projection heads); ``plain`` and ``masked`` are the teacher's layers (N, B, F, C) for the unmasked and the masked
input; ``mask`` (B, F) bool is True on masked frames; ``padding`` (B, F) bool is True on padded frames.

SKILL (arXiv 2402.16830) compares the means of groups of similar layers. Published: groups of the teacher's layers, by
hierarchical clustering of layer similarities on a small set; their averages are what is distilled. What this file
decides: similarity is linear CKA over frames; that of two groups is the mean over their pairs of layers; only
neighbouring groups join, so a group is a stretch of the depth; and the student's side is the mean over its own layers
of the same places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from reuse_distill.runtime.errors import RdError
from torch import Tensor

Kind = Literal["mse", "l1"]
Count = Literal["valid", "public"]
Groups = tuple[tuple[int, ...], ...]  # layers from 1


@dataclass(frozen=True)
class MaskingTerms:
    """The four sums over frames of the masking distillation loss, already divided by the frame count, unweighted.

    ``hint`` terms add the hint layers (all but the last), ``rec`` terms are the last layer. ``per_layer`` (N,) is
    masked + unmasked of every layer, NaN for layers that this step left out.
    """

    mask_hint: Tensor
    unmask_hint: Tensor
    mask_rec: Tensor
    unmask_rec: Tensor
    per_layer: Tensor
    hint_weight: float
    rec_weight: float

    @property
    def hint(self) -> Tensor:
        return self.hint_weight * (self.mask_hint + self.unmask_hint)

    @property
    def rec(self) -> Tensor:
        return self.rec_weight * (self.mask_rec + self.unmask_rec)

    @property
    def total(self) -> Tensor:
        return self.hint + self.rec


def frame_error(student: Tensor, teacher: Tensor, kind: Kind) -> Tensor:
    """Mean over channels of the squared (``mse``) or absolute (``l1``) error: (B, F, C), (B, F, C) -> (B, F).

    In float32 whatever the autocast: in float16 a squared difference above 255, or its sum over frames, is infinite.
    """
    difference = student.float() - teacher.float()
    return difference.square().mean(-1) if kind == "mse" else difference.abs().mean(-1)


def counted_frames(padding: Tensor, count: Count) -> Tensor:
    """The number of frames that a loss over ``padding`` (B, F) divides by: valid ones, or B F as published."""
    if count == "public":
        return torch.tensor(float(padding.numel()), device=padding.device)
    return (~padding).sum().to(torch.float32)


def masking_distillation(
    student: Sequence[Tensor],
    plain: Tensor,
    masked: Tensor,
    mask: Tensor,
    padding: Tensor,
    *,
    kind: Kind = "mse",
    count: Count = "valid",
    hint_layers: Sequence[int] | None = None,
    hint_weight: float = 0.1,
    rec_weight: float = 1.0,
    frames: Tensor | None = None,
) -> MaskingTerms:
    """ARMHuBERT's masking distillation (arXiv 2305.11685).

    Masked frames are pulled to the teacher that saw the unmasked input, unmasked frames to the teacher that saw
    the masked input. ``hint_layers`` (default: all but the last) join the last layer with ``hint_weight``.
    ``count="valid"`` leaves padded frames out; ``"public"`` sums and counts them as unmasked frames.
    ``frames`` overrides the divisor, for a batch that is spread over several devices or steps.
    """
    last = len(student) - 1
    _same_layers(len(student), plain, masked)
    hints = range(last) if hint_layers is None else hint_layers
    divisor = counted_frames(padding, count) if frames is None else frames
    hidden, seen = mask, ~mask
    if count == "valid":
        hidden, seen = mask & ~padding, ~mask & ~padding
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    for layer in (*hints, last):
        target = torch.where(mask[..., None], plain[layer], masked[layer])
        error = frame_error(student[layer], target, kind)
        # Chosen by where, not by index: an index with as many entries as the mask has makes the host wait for a GPU.
        pairs[layer] = (_sum_where(hidden, error) / divisor, _sum_where(seen, error) / divisor)
    zero = torch.zeros((), device=padding.device)
    return MaskingTerms(
        mask_hint=sum((pairs[layer][0] for layer in hints), zero),
        unmask_hint=sum((pairs[layer][1] for layer in hints), zero),
        mask_rec=pairs[last][0],
        unmask_rec=pairs[last][1],
        per_layer=_per_layer({layer: a + b for layer, (a, b) in pairs.items()}, len(student), zero),
        hint_weight=hint_weight,
        rec_weight=rec_weight,
    )


@dataclass(frozen=True)
class LayerTerms:
    """A loss that is one number per layer, weighted. ``per_layer`` (N,) unweighted, ``total`` weighted."""

    per_layer: Tensor
    total: Tensor


def layerwise_hint(
    student: Sequence[Tensor],
    teacher: Tensor,
    padding: Tensor,
    *,
    kind: Kind = "mse",
    count: Count = "valid",
    hint_weight: float = 0.1,
    rec_weight: float = 1.0,
    frames: Tensor | None = None,
) -> LayerTerms:
    """Plain layer-wise hints: every frame of every layer against the teacher, nothing masked.

    The same weights, layers and frame count as ``masking_distillation``, so the two compare.
    """
    nothing = torch.zeros_like(padding)
    terms = masking_distillation(
        student,
        teacher,
        teacher,
        nothing,
        padding,
        kind=kind,
        count=count,
        hint_weight=hint_weight,
        rec_weight=rec_weight,
        frames=frames,
    )
    return LayerTerms(per_layer=terms.per_layer.detach(), total=terms.total)


def predicting_heads(
    student: Sequence[Tensor],
    teacher: Tensor,
    padding: Tensor,
    *,
    kind: Kind = "l1",
    count: Count = "valid",
    cosine_weight: float = 1.0,
    frames: Tensor | None = None,
) -> tuple[LayerTerms, LayerTerms]:
    """DistilHuBERT (arXiv 2110.01900, equation 1): (distance, -log sigmoid of the cosine similarity), per head.

    ``student`` are N predictions (B, F, C), ``teacher`` (N, B, F, C) the layers that they predict. Means over channels
    and counted frames, as the public code takes them, and over heads in ``total``, the second weighted.
    """
    _same_layers(len(student), teacher)
    predicted = torch.stack(list(student))  # (N, B, F, C)
    target = teacher.to(predicted.dtype)  # for the cosine, which autocast computes in float32
    counted = torch.ones_like(padding) if count == "public" else ~padding
    divisor = counted_frames(padding, count) if frames is None else frames
    similarity = torch.nn.functional.cosine_similarity(predicted, target, dim=-1)
    distance = (frame_error(predicted, target, kind) * counted).sum((1, 2)) / divisor  # (N,)
    unlike = (-torch.nn.functional.logsigmoid(similarity) * counted).sum((1, 2)) / divisor
    return (
        LayerTerms(per_layer=distance.detach(), total=distance.mean()),
        LayerTerms(per_layer=unlike.detach(), total=cosine_weight * unlike.mean()),
    )


def _sum_where(chosen: Tensor, error: Tensor) -> Tensor:
    """The sum of (B, F) over the frames that ``chosen`` (B, F) bool names."""
    return torch.where(chosen, error, 0.0).sum()


def _per_layer(values: dict[int, Tensor], layers: int, zero: Tensor) -> Tensor:
    absent = torch.full_like(zero, float("nan"))
    return torch.stack([values.get(layer, absent).detach() for layer in range(layers)])


def _same_layers(student: int, *teachers: Tensor) -> None:
    for teacher in teachers:
        if teacher.shape[0] != student:
            raise RdError(
                f"the student gives {student} layers and the teacher {teacher.shape[0]}",
                hint="choose a student preset with as many layers as the teacher has",
            )


def groups_by_likeness(likeness: Sequence[Sequence[float]], count: int) -> Groups:
    """``count`` groups of the layers of ``likeness`` (N x N, larger is more alike); RdError for more than layers."""
    matrix = np.asarray(likeness, np.float64)
    if not 1 <= count <= len(matrix):
        raise RdError(f"loss.layer_groups is {count}", hint=f"1..{len(matrix)} groups of {len(matrix)} layers")
    groups = [[layer] for layer in range(len(matrix))]
    while len(groups) > count:
        alike = [matrix[np.ix_(left, right)].mean() for left, right in pairwise(groups)]
        at = int(np.argmax(alike))
        groups[at : at + 2] = [groups[at] + groups[at + 1]]
    return tuple(tuple(layer + 1 for layer in group) for group in groups)


def check_groups(groups: Groups, layers: int) -> None:
    """RdError where ``groups`` are not all layers, each once."""
    if sorted(layer for group in groups for layer in group) != list(range(1, layers + 1)) or not all(groups):
        raise RdError(
            f"loss.groups {[list(group) for group in groups]} are not the {layers} layers, each in one group",
            hint="such as [[1, 2], [3, 4, 5, 6]], or loss.layer_groups=2 to find them",
        )


def group_means(layers: Sequence[Tensor] | Tensor, groups: Groups) -> Tensor:
    """[N, B, F, C] -> [groups, B, F, C]."""
    return torch.stack([torch.stack([layers[layer - 1] for layer in group]).mean(0) for group in groups])
