"""One batch to one loss: what the teacher shows, what the student answers, how far they are apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from distill.data.batches import Batch
from distill.data.plan import CONTEXT, DROPOUT, LAYERS, MASK
from distill.losses import Count, Kind, layerwise_hint, masking_distillation
from distill.masks import draw_mask
from distill.recipe import Recipe
from distill.teachers import Teacher
from runtime.errors import RdError
from runtime.geometry import frames_for
from student import ChunkContext, StudentConfig, StudentOutput, frames_for_lengths

Forward = Callable[..., StudentOutput]


@dataclass(frozen=True)
class Draws:
    """Everything random about a batch, a function of seed and position."""

    mask: Tensor | None  # (B, F) bool
    context: ChunkContext | None
    hint_layers: list[int] | None
    dropout_seed: int


@dataclass(frozen=True)
class Measured:
    """``loss`` to minimise (already divided by all frames of the step) and named numbers for the log."""

    loss: Tensor
    terms: dict[str, Tensor]


def check_pair(recipe: Recipe, student: StudentConfig, teacher: Teacher) -> None:
    """Raise RdError where this teacher cannot teach this student."""
    info = teacher.info
    if student.layers != info.layers:
        raise RdError(
            f"teacher {info.name} has {info.layers} layers, student {recipe.student.preset} has {student.layers}",
            hint=f"choose another student, or student.changes.layers={info.layers} (and its reuse_layers)",
        )
    if recipe.loss.kind == "star":
        return
    if student.head_width is None:
        raise RdError(
            f"loss {recipe.loss.kind!r} compares projection heads, student {recipe.student.preset} has none",
            hint=f"student.changes.head_width={info.width}, or a recipe with loss.kind star",
        )
    if student.head_width != info.width:
        raise RdError(
            f"teacher {info.name} has width {info.width}, the student's heads have {student.head_width}",
            hint=f"student.changes.head_width={info.width}",
        )
    if recipe.loss.kind == "masking" and not student.mask_embedding:
        raise RdError("masking distillation needs a student with a mask embedding", hint="mask_embedding: true")


def draw(recipe: Recipe, batch: Batch, *, layers: int) -> Draws:
    """The draws of one batch."""
    where = [recipe.training.seed, batch.position.epoch, batch.position.batch]
    mask = None
    if recipe.loss.kind == "masking":
        valid = [frames_for(int(n)) for n in batch.lengths]
        drawn = draw_mask(recipe.mask, valid, frames_for(batch.wave.shape[1]), seed=[MASK, *where])
        mask = torch.from_numpy(drawn)
    chosen = int(np.random.default_rng([CONTEXT, *where]).integers(len(recipe.contexts)))
    hints = None
    if recipe.loss.hint_layers is not None:
        picked = np.random.default_rng([LAYERS, *where]).permutation(layers - 1)[: recipe.loss.hint_layers]
        hints = sorted(int(layer) for layer in picked)
    seed = int(np.random.SeedSequence([DROPOUT, *where]).generate_state(1, np.uint64)[0] >> 1)
    return Draws(mask, recipe.contexts[chosen], hints, seed)


def on_device(batch: Batch, draws: Draws, device: torch.device) -> tuple[Batch, Draws]:
    """Both with their tensors on ``device``."""
    moved = Batch(batch.wave.to(device), batch.lengths.to(device), batch.names, batch.position)
    return moved, draws if draws.mask is None else dataclasses.replace(draws, mask=draws.mask.to(device))


def frame_count(recipe: Recipe, batch: Batch) -> float:
    """Frames of the batch that the loss divides by."""
    if recipe.loss.count == "public":
        return float(batch.wave.shape[0] * frames_for(batch.wave.shape[1]))
    return float(frames_for_lengths(batch.lengths).sum())


def measure(
    recipe: Recipe, forward: Forward, teacher: Teacher, batch: Batch, draws: Draws, *, frames: Tensor
) -> Measured:
    """The loss of one batch on the device of its tensors; ``frames`` is the divisor of the whole step."""
    torch.manual_seed(draws.dropout_seed)
    if recipe.loss.kind == "star":
        from distill.star import measure_star

        return measure_star(recipe, forward, teacher, batch, draws, frames=frames)
    loss = recipe.loss
    distance, count = cast(Kind, loss.distance), cast(Count, loss.count)
    if draws.mask is None:
        target = teacher.hidden_states(batch.wave, batch.lengths)
        output = forward(batch.wave, batch.lengths, context=draws.context, layer_grad_scale=loss.layer_grad_scale)
        hint = layerwise_hint(
            output.projections,
            target,
            output.padding,
            kind=distance,
            count=count,
            hint_weight=loss.hint_weight,
            rec_weight=loss.rec_weight,
            frames=frames,
        )
        return Measured(hint.total, _layer_terms(hint.per_layer))
    plain, masked = teacher.both(batch.wave, batch.lengths, draws.mask)
    output = forward(
        batch.wave, batch.lengths, draws.mask, context=draws.context, layer_grad_scale=loss.layer_grad_scale
    )
    terms = masking_distillation(
        output.projections,
        plain,
        masked,
        draws.mask,
        output.padding,
        kind=distance,
        count=count,
        hint_layers=draws.hint_layers,
        hint_weight=loss.hint_weight,
        rec_weight=loss.rec_weight,
        frames=frames,
    )
    named = {name: getattr(terms, name) for name in ("mask_hint", "unmask_hint", "mask_rec", "unmask_rec")}
    return Measured(terms.total, {**named, **_layer_terms(terms.per_layer)})


def _layer_terms(per_layer: Tensor) -> dict[str, Tensor]:
    return {f"layer_{number}": value for number, value in enumerate(per_layer, start=1)}
