"""The numbers of a run for TensorBoard, beside metrics.csv."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reuse_distill.runtime.errors import RdError, install_hint

LEFT_OUT = ("step", "epoch")


class TensorBoardLog:
    """Event files in RUN/tensorboard; a resumed run purges what came after the step it resumes from."""

    def __init__(self, folder: Path, *, from_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RdError("tensorboard is not installed", hint=install_hint("distill")) from None
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def add(self, row: dict[str, float], *, prefix: str = "") -> None:
        """One row of metrics.csv, or of validation.csv under a prefix."""
        for name, value in row.items():
            if name not in LEFT_OUT:
                self._writer.add_scalar(prefix + name, value, int(row["step"]))

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()
