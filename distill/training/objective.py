"""One batch to one loss: what the teacher shows, what the student answers, how far apart they are, by term."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from reuse_distill.distill.alignment_loss import at_speed, normalised_soft_dtw, temporal_regulariser
from reuse_distill.distill.cluster_loss import codes_of, masked_prediction
from reuse_distill.distill.data.batches import Batch
from reuse_distill.distill.data.plan import CONTEXT, DROPOUT, LAYERS, MASK, VIEW
from reuse_distill.distill.losses import (
    Count,
    Kind,
    group_means,
    layerwise_hint,
    masking_distillation,
    predicting_heads,
)
from reuse_distill.distill.masks import draw_mask
from reuse_distill.distill.recipe import MASKED_LOSSES, TrainingRecipe
from reuse_distill.distill.star import weighted_star
from reuse_distill.distill.teachers import Teacher, TeacherPass
from reuse_distill.runtime.geometry import frames_for
from reuse_distill.student import ChunkContext, StudentOutput, frames_for_lengths
from torch import Tensor

Forward = Callable[..., StudentOutput]


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
class TeacherTargets:
    """The teacher's layers (N, B, F, C): ``plain``, ``masked`` for the masked input, ``whole`` the pass for STaR.

    ``centres`` (K, C): codes of the loss clusters.
    """

    plain: Tensor
    masked: Tensor | None
    whole: TeacherPass | None
    centres: Tensor | None = None


@dataclass(frozen=True)
class StudentPasses:
    """The student's output for the masked input and for the input as it is: the same where it saw only one.

    ``perturbed``: for the copy that the loss align compares.
    """

    masked: StudentOutput
    plain: StudentOutput
    perturbed: StudentOutput | None = None


def _layer_terms(per_layer: Tensor) -> dict[str, Tensor]:
    return {f"layer_{number}": value for number, value in enumerate(per_layer, start=1)}


def _masking_terms(
    recipe: TrainingRecipe, targets: TeacherTargets, passes: StudentPasses, draws: Draws, frames: Tensor
) -> Measured:
    loss = recipe.loss
    assert targets.masked is not None and draws.mask is not None  # noqa: S101
    terms = masking_distillation(
        passes.masked.projections,
        targets.plain,
        targets.masked,
        draws.mask,
        passes.masked.padding,
        kind=cast(Kind, loss.distance),
        count=cast(Count, loss.count),
        hint_layers=draws.hint_layers,
        hint_weight=loss.hint_weight,
        rec_weight=loss.rec_weight,
        frames=frames,
    )
    named = {name: getattr(terms, name) for name in ("mask_hint", "unmask_hint", "mask_rec", "unmask_rec")}
    return Measured(terms.total, {**named, **_layer_terms(terms.per_layer)})


def _hint_terms(
    recipe: TrainingRecipe, targets: TeacherTargets, passes: StudentPasses, draws: Draws, frames: Tensor
) -> Measured:
    loss = recipe.loss
    ours = passes.plain.projections or passes.plain.layers  # without heads the layers themselves (see check_pair)
    hint = layerwise_hint(
        list(group_means(ours, loss.groups)) if loss.groups else ours,
        group_means(targets.plain, loss.groups) if loss.groups else targets.plain,
        passes.plain.padding,
        kind=cast(Kind, loss.distance),
        count=cast(Count, loss.count),
        hint_weight=loss.hint_weight,
        rec_weight=loss.rec_weight,
        frames=frames,
    )
    return Measured(hint.total, _layer_terms(hint.per_layer))


def _head_terms(
    recipe: TrainingRecipe, targets: TeacherTargets, passes: StudentPasses, draws: Draws, frames: Tensor
) -> Measured:
    loss, output, info = recipe.loss, passes.plain, recipe.student.config()
    distance, unlike = predicting_heads(
        output.projections,
        targets.plain[[layer - 1 for layer in info.targets]],
        output.padding,
        kind=cast(Kind, loss.distance),
        count=cast(Count, loss.count),
        cosine_weight=loss.cosine_weight,
        frames=frames,
    )
    named = {f"layer_{layer}": value for layer, value in zip(info.targets, distance.per_layer, strict=True)}
    return Measured(distance.total + unlike.total, {"distance": distance.total, "cosine": unlike.total, **named})


def _cluster_terms(
    recipe: TrainingRecipe, targets: TeacherTargets, passes: StudentPasses, draws: Draws, frames: Tensor
) -> Measured:
    loss, output = recipe.loss, passes.masked
    assert targets.centres is not None and draws.mask is not None  # noqa: S101
    layer = loss.cluster_layer - 1  # -1 is the last
    predicted = (output.projections or output.layers)[layer]
    masked, seen, right = masked_prediction(
        predicted,
        codes_of(targets.plain[layer], targets.centres),
        targets.centres,
        draws.mask,
        output.padding,
        unmasked_weight=loss.unmasked_weight,
    )
    hidden = (draws.mask & ~output.padding).sum()
    named = {"masked": masked, "unmasked": seen, "masked_right": right, "masked_frames": hidden}
    return Measured((masked + seen) / frames, {name: value / frames for name, value in named.items()})


def _align_terms(
    recipe: TrainingRecipe, targets: TeacherTargets, passes: StudentPasses, draws: Draws, frames: Tensor
) -> Measured:
    loss = recipe.loss
    assert passes.perturbed is not None  # noqa: S101
    both = [passes.plain, passes.perturbed]
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


def _star_terms(
    recipe: TrainingRecipe, targets: TeacherTargets, passes: StudentPasses, draws: Draws, frames: Tensor
) -> Measured:
    assert targets.whole is not None  # noqa: S101
    return Measured(*weighted_star(recipe.loss, passes.plain, targets.whole, frames=frames))


TERMS: dict[str, Callable[[TrainingRecipe, TeacherTargets, StudentPasses, Draws, Tensor], Measured]] = {
    "masking": _masking_terms,
    "hint": _hint_terms,
    "heads": _head_terms,
    "star": _star_terms,
    "clusters": _cluster_terms,
    "align": _align_terms,
}


def draw(recipe: TrainingRecipe, batch: Batch, *, layers: int) -> Draws:
    """The draws of one batch."""
    where = [recipe.training.seed, batch.position.epoch, batch.position.batch]
    mask = None
    if MASKED_LOSSES & recipe.loss.weights.keys():
        valid = [frames_for(int(n)) for n in batch.lengths]
        drawn = draw_mask(recipe.mask, valid, frames_for(batch.wave.shape[1]), seed=[MASK, *where])
        mask = torch.from_numpy(drawn)
    chosen = int(np.random.default_rng([CONTEXT, *where]).integers(len(recipe.contexts)))
    hints = None
    if recipe.loss.hint_layers is not None:
        picked = np.random.default_rng([LAYERS, *where]).permutation(layers - 1)[: recipe.loss.hint_layers]
        hints = sorted(int(layer) for layer in picked)
    seed = int(np.random.SeedSequence([DROPOUT, *where]).generate_state(1, np.uint64)[0] >> 1)
    speeds = recipe.loss.align_speeds
    speed = speeds[int(np.random.default_rng([VIEW, *where]).integers(len(speeds)))]
    return Draws(mask, recipe.contexts[chosen], hints, seed, speed)


def on_device(batch: Batch, draws: Draws, device: torch.device) -> tuple[Batch, Draws]:
    """Both with their tensors on ``device``; the host does not wait for page-locked ones."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    optional = {name: getattr(batch, name) for name in ("clean", "targets")}
    parts: dict[str, Any] = {name: None if tensor is None else move(tensor) for name, tensor in optional.items()}
    moved = dataclasses.replace(batch, wave=move(batch.wave), lengths=move(batch.lengths), **parts)
    return moved, draws if draws.mask is None else dataclasses.replace(draws, mask=move(draws.mask))


def frame_count(recipe: TrainingRecipe, batch: Batch) -> float:
    """Frames of the batch that the loss divides by."""
    if recipe.loss.count == "public":
        return float(batch.wave.shape[0] * frames_for(batch.wave.shape[1]))
    return float(frames_for_lengths(batch.lengths).sum())


def measure(
    recipe: TrainingRecipe,
    forward: Forward,
    teacher: Teacher,
    batch: Batch,
    draws: Draws,
    *,
    frames: Tensor,
    centres: Tensor | None = None,
) -> Measured:
    """The loss of one batch on the device of its tensors; ``frames`` is the divisor of the whole step.

    ``centres`` [K, C]: codes of the loss clusters.
    """
    torch.manual_seed(draws.dropout_seed)
    weights = recipe.loss.weights
    targets = dataclasses.replace(teacher_targets(recipe, teacher, batch, draws), centres=centres)
    passes = student_passes(recipe, forward, batch, draws)
    parts = {kind: TERMS[kind](recipe, targets, passes, draws, frames) for kind in weights}
    if len(parts) == 1:
        return parts[recipe.loss.kind]
    total = sum((weights[kind] * part.loss for kind, part in parts.items()), frames.new_zeros(()))
    named = {kind: part.loss for kind, part in parts.items()}
    inner = {f"{kind}_{name}": value for kind, part in parts.items() for name, value in part.terms.items()}
    return Measured(total, {**named, **inner})


def teacher_targets(recipe: TrainingRecipe, teacher: Teacher, batch: Batch, draws: Draws) -> TeacherTargets:
    """What the teacher makes of the batch: one pass for the input as it is, one for the masked input where needed."""
    if batch.targets is not None:  # losses that need more were refused (``pairing.check_targets``)
        return TeacherTargets(batch.targets, None, None)
    kinds, wave, lengths = recipe.loss.weights.keys(), batch.for_teacher, batch.lengths
    if kinds == {"align"}:  # the student is compared with itself
        return TeacherTargets(wave.new_zeros(0), None, None)
    if "star" in kinds:
        whole = teacher.run(wave, lengths, maps=recipe.loss.attention_weight > 0)
        masked = teacher.hidden_states(wave, lengths, draws.mask) if "masking" in kinds else None
        return TeacherTargets(whole.layers, masked, whole)
    if "masking" in kinds:
        assert draws.mask is not None  # noqa: S101  (draw has seen to it)
        return TeacherTargets(*teacher.both(wave, lengths, draws.mask), None)
    return TeacherTargets(teacher.hidden_states(wave, lengths), None, None)


def student_passes(recipe: TrainingRecipe, forward: Forward, batch: Batch, draws: Draws) -> StudentPasses:
    """What the student makes of it, in one forward: of the masked input, of the input as it is, or of both."""
    loss, kinds = recipe.loss, recipe.loss.weights.keys()
    wave, lengths, mask = batch.wave, batch.lengths, draws.mask
    both = mask is not None and len(kinds) > 1
    if both:
        assert mask is not None  # noqa: S101
        wave, lengths = wave.repeat(2, 1), lengths.repeat(2)
        mask = torch.cat([mask, torch.zeros_like(mask)])
    # A plain pair: Fabric walks through all arguments under mixed precision and refuses frozen dataclasses.
    how: dict[str, Any] = {"context": None if draws.context is None else dataclasses.astuple(draws.context)}
    if kinds != {"star"}:
        how["layer_grad_scale"] = loss.layer_grad_scale
    if loss.front_end_grad_scale != 1:
        how["front_end_grad_scale"] = loss.front_end_grad_scale
    if "star" in kinds:
        how["with_maps"] = loss.attention_weight > 0
    output = forward(wave, lengths, mask, **how)
    perturbed = None
    if "align" in kinds:
        perturbed = forward(*at_speed(batch.wave, batch.lengths, draws.speed), None, **how)
    if not both:
        return StudentPasses(output, output, perturbed)
    rows = len(batch.wave)
    return StudentPasses(_rows(output, slice(rows)), _rows(output, slice(rows, None)), perturbed)


def _rows(output: StudentOutput, rows: slice) -> StudentOutput:
    """The output for some rows of the batch."""
    values = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    return StudentOutput(**{k: [x[rows] for x in v] if isinstance(v, list) else v[rows] for k, v in values.items()})
