"""From what the teacher shows and the student answers to the named terms of each loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from reuse_distill.distill.alignment_loss import normalised_soft_dtw, temporal_regulariser
from reuse_distill.distill.cluster_loss import codes_of, masked_prediction
from reuse_distill.distill.layer_groups import group_means
from reuse_distill.distill.losses import Count, Kind, layerwise_hint, masking_distillation, predicting_heads
from reuse_distill.distill.recipe import TrainingRecipe
from reuse_distill.distill.star import weighted_star
from reuse_distill.distill.teachers import TeacherPass
from reuse_distill.student import ChunkContext, StudentOutput
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """Everything random about a batch, a function of seed and position."""

    mask: Tensor | None  # (B, F) bool
    context: ChunkContext | None
    hint_layers: list[int] | None
    dropout_seed: int
    speed: float = 1.0  # of the perturbed copy


@dataclass(frozen=True)
class Measured:
    """``loss`` to minimise (already divided by all frames of the step) and named numbers for the log."""

    loss: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class Shown:
    """The teacher's layers (N, B, F, C): ``plain``, ``masked`` for the masked input, ``whole`` the pass for STaR.

    ``centres`` (K, C): codes of the loss clusters.
    """

    plain: Tensor
    masked: Tensor | None
    whole: TeacherPass | None
    centres: Tensor | None = None


@dataclass(frozen=True)
class Answer:
    """The student's output for the masked input and for the input as it is: the same where it saw only one.

    ``perturbed``: for the copy that the loss align compares.
    """

    masked: StudentOutput
    plain: StudentOutput
    perturbed: StudentOutput | None = None


def _layer_terms(per_layer: Tensor) -> dict[str, Tensor]:
    return {f"layer_{number}": value for number, value in enumerate(per_layer, start=1)}


def _masking_terms(recipe: TrainingRecipe, shown: Shown, answer: Answer, draws: Draws, frames: Tensor) -> Measured:
    loss = recipe.loss
    assert shown.masked is not None and draws.mask is not None  # noqa: S101
    terms = masking_distillation(
        answer.masked.projections,
        shown.plain,
        shown.masked,
        draws.mask,
        answer.masked.padding,
        kind=cast(Kind, loss.distance),
        count=cast(Count, loss.count),
        hint_layers=draws.hint_layers,
        hint_weight=loss.hint_weight,
        rec_weight=loss.rec_weight,
        frames=frames,
    )
    named = {name: getattr(terms, name) for name in ("mask_hint", "unmask_hint", "mask_rec", "unmask_rec")}
    return Measured(terms.total, {**named, **_layer_terms(terms.per_layer)})


def _hint_terms(recipe: TrainingRecipe, shown: Shown, answer: Answer, draws: Draws, frames: Tensor) -> Measured:
    loss = recipe.loss
    ours = answer.plain.projections or answer.plain.layers  # without heads the layers themselves (see check_pair)
    hint = layerwise_hint(
        list(group_means(ours, loss.groups)) if loss.groups else ours,
        group_means(shown.plain, loss.groups) if loss.groups else shown.plain,
        answer.plain.padding,
        kind=cast(Kind, loss.distance),
        count=cast(Count, loss.count),
        hint_weight=loss.hint_weight,
        rec_weight=loss.rec_weight,
        frames=frames,
    )
    return Measured(hint.total, _layer_terms(hint.per_layer))


def _head_terms(recipe: TrainingRecipe, shown: Shown, answer: Answer, draws: Draws, frames: Tensor) -> Measured:
    loss, output, info = recipe.loss, answer.plain, recipe.student.config()
    distance, unlike = predicting_heads(
        output.projections,
        shown.plain[[layer - 1 for layer in info.targets]],
        output.padding,
        kind=cast(Kind, loss.distance),
        count=cast(Count, loss.count),
        cosine_weight=loss.cosine_weight,
        frames=frames,
    )
    named = {f"layer_{layer}": value for layer, value in zip(info.targets, distance.per_layer, strict=True)}
    return Measured(distance.total + unlike.total, {"distance": distance.total, "cosine": unlike.total, **named})


def _cluster_terms(recipe: TrainingRecipe, shown: Shown, answer: Answer, draws: Draws, frames: Tensor) -> Measured:
    loss, output = recipe.loss, answer.masked
    assert shown.centres is not None and draws.mask is not None  # noqa: S101
    layer = loss.cluster_layer - 1  # -1 is the last
    predicted = (output.projections or output.layers)[layer]
    masked, seen, right = masked_prediction(
        predicted,
        codes_of(shown.plain[layer], shown.centres),
        shown.centres,
        draws.mask,
        output.padding,
        unmasked_weight=loss.unmasked_weight,
    )
    hidden = (draws.mask & ~output.padding).sum()
    named = {"masked": masked, "unmasked": seen, "masked_right": right, "masked_frames": hidden}
    return Measured((masked + seen) / frames, {name: value / frames for name, value in named.items()})


def _align_terms(recipe: TrainingRecipe, shown: Shown, answer: Answer, draws: Draws, frames: Tensor) -> Measured:
    loss = recipe.loss
    assert answer.perturbed is not None  # noqa: S101
    both = [answer.plain, answer.perturbed]
    x, y = ((one.projections or one.layers)[-1] for one in both)
    rows, columns = ((~one.padding).sum(1) for one in both)
    distance = normalised_soft_dtw(x, y, rows, columns, gamma=loss.align_gamma)
    apart = sum(
        temporal_regulariser(one, count, sigma=loss.align_sigma, margin=loss.align_margin)
        for one, count in ((x, rows), (y, columns))
    )
    share = rows / frames  # utterances count by their frames
    named = {"alignment": (distance * share).sum(), "regulariser": (apart * share).sum()}
    return Measured(named["alignment"] + loss.align_weight * named["regulariser"], named)


def _star_terms(recipe: TrainingRecipe, shown: Shown, answer: Answer, draws: Draws, frames: Tensor) -> Measured:
    assert shown.whole is not None  # noqa: S101
    return Measured(*weighted_star(recipe.loss, answer.plain, shown.whole, frames=frames))


TERMS: dict[str, Callable[[TrainingRecipe, Shown, Answer, Draws, Tensor], Measured]] = {
    "masking": _masking_terms,
    "hint": _hint_terms,
    "heads": _head_terms,
    "star": _star_terms,
    "clusters": _cluster_terms,
    "align": _align_terms,
}
