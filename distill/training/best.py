"""The checkpoints with the lowest held-out loss, beside the last one.

RUN/best/index.json           step and loss of each, the best first
RUN/best/step-000400/         a checkpoint folder, as RUN/student
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from reuse_distill.distill.files import write_json
from reuse_distill.student import Student, save_checkpoint

BEST, INDEX = "best", "index.json"


class BestCheckpoints:
    """At most ``keep`` folders below RUN/best. A resumed run finds those of its first part and goes on from there."""

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
