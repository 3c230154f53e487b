"""The loss on held-out audio: the same crops, masks and contexts at every step, no dropout, no augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from reuse_distill.distill.data.batches import BatchReader, StoredTargets
from reuse_distill.distill.data.utterances import Utterance
from reuse_distill.distill.recipe import TrainingRecipe, changed
from reuse_distill.distill.teachers import Teacher
from reuse_distill.distill.training.objective import draw, frame_count, measure, on_device
from reuse_distill.distill.training.processes import share
from torch import Tensor

# Data settings without augmentation.
PLAIN: dict[str, Any] = {
    "gain_db": 0.0,
    "noise_snr_db": None,
    "speeds": (),
    "noise": None,
    "rooms": None,
    "student_gain_db": (),
    "narrow_band_probability": 0.0,
}


class Validator:
    """Held-out utterances as batches, and the loss over all of them, shared by the processes of ``fabric``."""

    def __init__(
        self,
        fabric: Any,
        recipe: TrainingRecipe,
        teacher: Teacher,
        held: Sequence[Utterance],
        *,
        layers: int,
        targets: StoredTargets | None = None,
        centres: Tensor | None = None,
    ) -> None:
        self.fabric, self.teacher, self.layers, self.centres = fabric, teacher, layers, centres
        self.recipe = changed(recipe, data=PLAIN)
        self.reader = BatchReader(held, self.recipe.data, seed=recipe.training.seed, targets=targets)

    @torch.no_grad()
    def measure(self, model: Any) -> dict[str, float]:
        """``loss`` and its terms, means over the held-out frames. ``model`` is in training mode before and after."""
        model.eval()
        sums: dict[str, Tensor] = {}
        frames_of_all = torch.zeros((), dtype=torch.float64, device=self.fabric.device)
        rank, ranks, pin = self.fabric.global_rank, self.fabric.world_size, self.fabric.device.type == "cuda"
        for batch, counted in self.reader.one_epoch(0, rank=rank, ranks=ranks, pin=pin):
            moved, draws = on_device(batch, draw(self.recipe, batch, layers=self.layers), self.fabric.device)
            frames = torch.tensor(frame_count(self.recipe, batch), device=self.fabric.device)
            measured = measure(self.recipe, model, self.teacher, moved, draws, frames=frames, centres=self.centres)
            weight = frames.double() * counted
            frames_of_all += weight
            for name, value in {"loss": measured.loss, **measured.terms}.items():
                sums[name] = sums.get(name, torch.zeros_like(weight)) + value.double() * weight
        model.train()
        return self._means(sums, frames_of_all)

    def _means(self, sums: dict[str, Tensor], frames: Tensor) -> dict[str, float]:
        found = torch.tensor(float(sum(damage.unshared for damage in self.reader.damages)), device=frames.device)
        values = torch.stack([*sums.values(), frames, found.double()])
        if self.fabric.world_size > 1:
            values = self.fabric.all_reduce(values, reduce_op="sum")
        *totals, counted, damaged = values.tolist()
        if damaged > 0:
            share(self.fabric, self.reader.damages)
        return {name: total / counted for name, total in zip(sums, totals, strict=True)}
