"""Whether a teacher can teach a student by a recipe, before anything is read or computed; and what is measured of it.

Like layers (SKILL) and clusters (DiceHuBERT) are measured on the first batches of the run's own data: some thousand
frames are enough. Files: OUTPUT/centres.npy.
"""

from __future__ import annotations

import dataclasses
import io
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from reuse_distill.distill.data.batches import BatchReader, Position
from reuse_distill.distill.evaluation.features import cka_matrix
from reuse_distill.distill.files import write_atomically
from reuse_distill.distill.losses import check_groups, groups_by_likeness
from reuse_distill.distill.recipe import MASKED_LOSSES, TrainingRecipe
from reuse_distill.distill.tasks.fit_without_gradients import k_means
from reuse_distill.distill.teachers import Teacher, TeacherInfo
from reuse_distill.distill.teachers.protocol import layers_by_depth
from reuse_distill.distill.training.objective import draw, on_device, teacher_targets
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import StudentConfig, frames_for_lengths
from torch import Tensor

CENTRES = "centres.npy"
BATCHES = 8  # that likeness is measured on
FRAMES_PER_CLUSTER = 40  # that centres are fitted to, where the data has so many
MOST_BATCHES = 200


def fitted(recipe: TrainingRecipe, info: TeacherInfo) -> tuple[StudentConfig, tuple[int, ...]]:
    """(the student's shape, the teacher's layers that teach): fitted to the teacher where the recipe says so.

    With ``student.fit_teacher`` the heads have the teacher's width, and each layer is taught by the teacher's at the
    same share of the depth. Otherwise the recipe's shape and all layers, which have to fit (``check_pair``).
    """
    config = recipe.student.config()
    if not recipe.student.fit_teacher:
        return config, tuple(range(1, info.layers + 1))
    if config.head_width is not None and "head_width" not in recipe.student.changes:
        config = dataclasses.replace(config, head_width=info.width)
    if config.head_kind == "split":
        return config, tuple(range(1, info.layers + 1))
    return config, layers_by_depth(config.layers, info.layers)


def check_targets(recipe: TrainingRecipe) -> None:
    """Raise RdError where targets that were made before cannot serve a recipe."""
    kinds, data = recipe.loss.weights.keys(), recipe.data
    if kinds & {"masking", "star"}:
        raise RdError(
            f"loss {' + '.join(sorted(kinds))} needs the teacher itself: targets hold its layers of the unmasked input",
            hint="loss.kind=hint or heads without loss.mix, or --teacher in place of --targets",
        )
    common = [name for name, drawn in (("gain_db", data.gain_db > 0), ("speeds", bool(data.speeds))) if drawn]
    if data.teacher_hears != "clean":
        common += [name for name in ("noise", "rooms", "noise_snr_db") if getattr(data, name) is not None]
    if common:
        raise RdError(
            f"targets were made of the recordings as they are, but data.{common[0]} changes what the teacher hears",
            hint="data.student_gain_db and data.narrow_band_probability are the student's own; noise and rooms are "
            "with data.teacher_hears=clean",
        )


def check_pair(
    recipe: TrainingRecipe, student: StudentConfig, teacher: Teacher, *, teaching: int | None = None
) -> None:
    """Raise RdError where this teacher cannot teach this student. ``teaching``: how many of its layers do."""
    info, kinds = teacher.info, recipe.loss.weights.keys()
    layers = info.layers if teaching is None else teaching
    too_deep = student.head_kind == "split" and student.targets[-1] > info.layers
    if too_deep or (student.head_kind == "layerwise" and student.layers != layers):
        raise RdError(
            f"teacher {info.name} has {info.layers} layers, student {recipe.student.preset} has {student.layers}"
            + (f" and predicts layers {list(student.head_targets)}" if student.head_targets else ""),
            hint=f"choose another student, or student.changes.layers={info.layers} (and its reuse_layers)"
            if not student.head_targets
            else "set student.changes.head_targets",
        )
    _check_kinds(recipe, student)
    if kinds in ({"star"}, {"align"}):
        return
    if student.head_width is None and kinds == {"hint"} and student.width == info.width:
        return  # layer against layer: a student that is taught by what it was before compression
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
    if "masking" in kinds and not teacher.can_mask:
        raise RdError(
            f"teacher {info.name} has no mask embedding, so it cannot see a masked input",
            hint="loss.kind hint, star or heads; or the same teacher as a transformers folder or .pt file",
        )
    masked = sorted(MASKED_LOSSES & kinds)
    if masked and not student.mask_embedding:
        raise RdError(f"loss {masked[0]} needs a student with a mask embedding", hint="mask_embedding: true")


def _check_kinds(recipe: TrainingRecipe, student: StudentConfig) -> None:
    """Losses that compare every layer need as many of them on both sides."""
    kinds = recipe.loss.weights.keys()
    if student.head_kind == "split" and kinds != {"heads"}:
        raise RdError(
            f"losses {sorted(kinds)} compare every layer, student {recipe.student.preset} predicts some from its last",
            hint="loss.kind=heads without loss.mix",
        )
    if student.time_reduction > 1 and "star" in kinds and recipe.loss.attention_weight > 0:
        raise RdError(
            f"the attention maps of a student with time_reduction {student.time_reduction} have other frames than "
            "the teacher's",
            hint="loss.attention_weight=0",
        )
    if student.time_reduction > 1 and any(context is not None for context in recipe.contexts):
        raise RdError("a student that reduces time has no chunked forward", hint="contexts: [null]")


def with_groups(
    recipe: TrainingRecipe, teacher: Teacher, reader: BatchReader, device: torch.device, *, layers: int
) -> TrainingRecipe:
    """The recipe with ``loss.groups``, found where it asks for a number of them. RdError for groups that do not fit."""
    loss = recipe.loss
    if loss.layer_groups and not loss.groups:
        seen = _frames(recipe, teacher, reader, device, batches=BATCHES)
        groups = groups_by_likeness(cka_matrix([seen], [seen]), loss.layer_groups)
        recipe = dataclasses.replace(recipe, loss=dataclasses.replace(loss, groups=groups))
    if recipe.loss.groups:
        check_groups(recipe.loss.groups, layers)
    return recipe


def fitted_centres(recipe: TrainingRecipe, teacher: Teacher, reader: BatchReader, device: torch.device) -> Tensor:
    """K-means centres [K, C] of the layer that ``loss.cluster_layer`` names. RdError where frames are too few."""
    loss, frames, batches = recipe.loss, torch.zeros(0), 4
    needed = FRAMES_PER_CLUSTER * loss.clusters
    while True:
        seen = _frames(recipe, teacher, reader, device, batches=batches)
        if not 0 <= loss.cluster_layer <= len(seen):
            raise RdError(f"loss.cluster_layer is {loss.cluster_layer}", hint=f"1..{len(seen)}, or 0 for the last")
        before, frames = len(frames), seen[loss.cluster_layer - 1]
        if len(frames) >= needed or len(frames) == before or batches >= MOST_BATCHES:
            break
        batches = min(MOST_BATCHES, batches * 4)
    if len(frames) < 2 * loss.clusters:
        raise RdError(
            f"{len(frames)} frames are too few for {loss.clusters} clusters", hint="more data, or lower loss.clusters"
        )
    return k_means(frames[:needed], loss.clusters, seed=recipe.training.seed).centroids


def read_centres(file: Path, clusters: int) -> Tensor:
    """Centres of a run that is resumed. RdError where the file is damaged."""
    try:
        centres = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RdError(f"{file} cannot be read: {str(error)[:100]}", hint="start the run again") from None
    if centres.ndim != 2 or len(centres) != clusters or centres.dtype != np.float32 or not np.isfinite(centres).all():
        raise RdError(f"{file} holds {centres.dtype} {centres.shape}, {clusters} centres in float32 are needed")
    return torch.from_numpy(centres)


def write_centres(folder: Path, centres: Tensor) -> None:
    """OUTPUT/centres.npy, whole or not at all."""
    data = io.BytesIO()
    np.save(data, centres.numpy(), allow_pickle=False)
    write_atomically(folder / CENTRES, data.getvalue())


def _frames(
    recipe: TrainingRecipe, teacher: Teacher, reader: BatchReader, device: torch.device, *, batches: int
) -> Tensor:
    """Valid frames (N, frames, C) of the teacher's layers in the first batches, on the CPU."""
    stream, parts, placed = reader.batches(Position(), rank=0, ranks=1, pin=False), [], teacher.to(device)
    plain = dataclasses.replace(recipe, loss=dataclasses.replace(recipe.loss, kind="hint", mix={}))
    try:
        for batch in islice(stream, min(batches, len(reader.plan(0)))):
            moved, draws = on_device(batch, draw(plain, batch, layers=1), device)
            layers = teacher_targets(plain, placed, moved, draws).plain.float().cpu()  # (N, B, F, C)
            counts = frames_for_lengths(batch.lengths).tolist()
            parts += [layers[:, row, :count] for row, count in enumerate(counts)]
    finally:
        stream.close()
    return torch.cat(parts, dim=1)
