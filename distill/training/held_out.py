"""The loss on held-out audio, and the checkpoints with the lowest of it, beside the last one.

Every time the same crops, masks and contexts; no dropout, no augmentation.

RUN/best/index.json           step and loss of each, the best first
RUN/best/step-000400/         a checkpoint folder, as RUN/student
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from reuse_distill.distill.data.batches import BatchReader, StoredTargets
from reuse_distill.distill.data.utterances import Utterance
from reuse_distill.distill.files import write_json
from reuse_distill.distill.recipe import TrainingRecipe, changed
from reuse_distill.distill.teachers import Teacher
from reuse_distill.distill.training.launch import share
from reuse_distill.distill.training.objective import draw, frame_count, measure, on_device
from reuse_distill.student import Student, save_checkpoint
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
BEST, INDEX = "best", "index.json"


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
        damaged_files = torch.tensor(
            float(sum(source.unshared for source in self.reader.damaged_files)), device=frames.device
        )
        values = torch.stack([*sums.values(), frames, damaged_files.double()])
        if self.fabric.world_size > 1:
            values = self.fabric.all_reduce(values, reduce_op="sum")
        *totals, counted, damaged = values.tolist()
        if damaged > 0:
            share(self.fabric, self.reader.damaged_files)
        return {name: total / counted for name, total in zip(sums, totals, strict=True)}


class BestCheckpoints:
    """At most ``keep`` folders below RUN/best. A resumed run finds those of its first part and continues from there."""

    def __init__(self, run_folder: Path, *, keep: int) -> None:
        self.folder, self.keep = run_folder / BEST, keep
        self.entries: list[dict[str, Any]] = _read_index(self.folder / INDEX)

    def wants(self, step: int, loss: float) -> bool:
        """Whether a checkpoint of ``step`` would be kept. NaN never is."""
        others = [entry["loss"] for entry in self.entries if entry["step"] != step]
        return self.keep > 0 and math.isfinite(loss) and (len(others) < self.keep or loss < max(others))

    def add(self, step: int, loss: float, student: Student, provenance: dict[str, Any]) -> None:
        """Write the checkpoint of ``step`` and drop the worst beyond ``keep``. Raises RdError for a full disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = {"step": step, "validation_loss": loss}
        save_checkpoint(self.folder / _name(step), student, provenance={**provenance, **numbers}, training=numbers)
        others = [entry for entry in self.entries if entry["step"] != step]
        ranked = sorted(
            [*others, {"step": step, "loss": loss, "folder": _name(step)}], key=lambda e: (e["loss"], e["step"])
        )
        self.entries, dropped = ranked[: self.keep], ranked[self.keep :]
        write_json(self.folder / INDEX, self.entries)
        for entry in dropped:
            shutil.rmtree(self.folder / _name(entry["step"]), ignore_errors=True)


def _name(step: int) -> str:
    return f"step-{step:06d}"


def _read_index(path: Path) -> list[dict[str, Any]]:
    """The entries whose folders are there; none where the index is missing or damaged: it is written anew."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [e for e in entries if math.isfinite(e["loss"]) and (path.parent / _name(e["step"])).is_dir()]
    except (OSError, ValueError, TypeError, KeyError):
        return []
