"""The student to export, from a checkpoint folder of ours or a public file or folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reuse_distill.runtime.bundle import file_sha256
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, load_checkpoint
from reuse_distill.student.checkpoint import WEIGHTS, read_provenance
from reuse_distill.student.distilhubert import holds_distilhubert, is_transformers_folder, load_distilhubert
from reuse_distill.student.public import load_public_checkpoint


@dataclass(frozen=True)
class Source:
    """A student and where it comes from."""

    student: Student
    name: str
    sha256: str
    provenance: dict[str, Any]


def read_source(checkpoint: Path, config: Path | None) -> Source:
    """Raises RdError when ``checkpoint`` is neither a checkpoint folder nor a file with ``config`` beside it."""
    if checkpoint.is_dir():
        if config is not None:
            raise RdError(f"--config {config} is for public checkpoint files; {checkpoint} is a folder with its own")
        if is_transformers_folder(checkpoint):
            student, weights = load_distilhubert(checkpoint), sorted(checkpoint.glob("*.safetensors"))
            file = weights[0] if weights else checkpoint / "pytorch_model.bin"
            return Source(student, checkpoint.name, file_sha256(file), {"public_checkpoint": checkpoint.name})
        student = load_checkpoint(checkpoint)
        return Source(student, checkpoint.name, file_sha256(checkpoint / WEIGHTS), read_provenance(checkpoint))
    if not checkpoint.exists():
        raise RdError(f"{checkpoint}: no such checkpoint", hint="give a checkpoint folder, or a .ckpt with --config")
    if config is None and not holds_distilhubert(checkpoint):
        raise RdError(f"{checkpoint} is a file: its configuration is needed", hint="add --config FILE.yaml")
    student = load_distilhubert(checkpoint) if config is None else load_public_checkpoint(checkpoint, config)
    return Source(student, checkpoint.name, file_sha256(checkpoint), {"public_checkpoint": checkpoint.name})
