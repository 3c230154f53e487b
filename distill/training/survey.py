"""What a run learns about its teacher before it begins: like layers (SKILL) and clusters (DiceHuBERT), from batches.

The first batches of the run's own data are enough: some thousand frames. Files: OUTPUT/centres.npy.
"""

from __future__ import annotations

import dataclasses
import io
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from reuse_distill.distill.data.batches import BatchReader, Position
from reuse_distill.distill.evaluation.cka import cka_matrix
from reuse_distill.distill.files import write_atomically
from reuse_distill.distill.layer_groups import check_groups, groups_by_likeness
from reuse_distill.distill.recipe import TrainingRecipe
from reuse_distill.distill.tasks.fit_units import k_means
from reuse_distill.distill.teachers import Teacher
from reuse_distill.distill.training.objective import draw, on_device, show
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import frames_for_lengths
from torch import Tensor

CENTRES = "centres.npy"
BATCHES = 8  # that likeness is measured on
FRAMES_PER_CLUSTER = 40  # that centres are fitted to, where the data has so many
MOST_BATCHES = 200


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
            layers = show(plain, placed, moved, draws).plain.float().cpu()  # (N, B, F, C)
            counts = frames_for_lengths(batch.lengths).tolist()
            parts += [layers[:, row, :count] for row, count in enumerate(counts)]
    finally:
        stream.close()
    return torch.cat(parts, dim=1)
