"""What is exported: a student from a checkpoint folder of ours or a public file, or an encoder of another library.

And what a manifest and a report say about it: its source, its attention maps, the versions of the tools.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reuse_distill.export.spec import ExportSpec
from reuse_distill.runtime.bundle_format.bundle import file_sha256
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, load_checkpoint
from reuse_distill.student.checkpoints.checkpoint import WEIGHTS, read_provenance
from reuse_distill.student.checkpoints.distilhubert import load_distilhubert
from reuse_distill.student.checkpoints.public import load_public_checkpoint
from reuse_distill.student.checkpoints.unpickle import read_torch_file
from reuse_distill.student.cost import macs_per_second
from reuse_distill.student.foreign import ForeignCheckpoint, is_foreign, read_foreign, student_of
from reuse_distill.student.foreign.foreign_checkpoint import fetch_hint
from reuse_distill.student.foreign.foreign_files import left_out
from reuse_distill.student.foreign.melhubert import holds_melhubert

MAP_SAMPLES = 48_000  # 3 s


@dataclass(frozen=True)
class Source:
    """A student and where it comes from."""

    student: Student
    name: str
    sha256: str
    provenance: dict[str, Any]
    foreign: ForeignCheckpoint | None = None  # what an encoder of another library was read from, heads included
    notes: tuple[str, ...] = ()  # what the log should say of it


def read_source(checkpoint: Path, config: Path | None) -> Source:
    """Raises RdError when ``checkpoint`` is neither a checkpoint folder nor a file with ``config`` beside it."""
    if checkpoint.is_dir():
        if config is not None:
            raise RdError(f"--config {config} is for public checkpoint files; {checkpoint} is a folder with its own")
        if is_foreign(checkpoint):
            return foreign_source(read_foreign(checkpoint))
        student = load_checkpoint(checkpoint)
        return Source(student, checkpoint.name, file_sha256(checkpoint / WEIGHTS), read_provenance(checkpoint))
    if not checkpoint.exists():
        hint = fetch_hint(str(checkpoint)) or "give a checkpoint folder, or a .ckpt with --config"
        raise RdError(f"{checkpoint}: no such checkpoint", hint=hint)
    if config is not None:
        student = load_public_checkpoint(checkpoint, config)
        return Source(student, checkpoint.name, file_sha256(checkpoint), {"public_checkpoint": checkpoint.name})
    return _file_without_config(checkpoint)


def foreign_source(checkpoint: ForeignCheckpoint) -> Source:
    """The encoder of another library; heads beside it are kept for those who export them."""
    level = "normalised per utterance" if checkpoint.normalise_input is not None else "taken as it is"
    notes = [f"{checkpoint.kind} encoder of {checkpoint.name}: audio is {level} ({checkpoint.level_from})"]
    if checkpoint.heads:
        notes.append(left_out(checkpoint.heads))
    provenance = {
        "public_checkpoint": checkpoint.name,
        "model_type": checkpoint.kind,
        "level_from": checkpoint.level_from,
    }
    return Source(student_of(checkpoint), checkpoint.name, checkpoint.sha256, provenance, checkpoint, tuple(notes))


def _file_without_config(file: Path) -> Source:
    """A file that has its configuration in it: s3prl's DistilHuBERT, or a teacher of fairseq or of WavLM."""
    data = read_torch_file(file)
    keys = data.keys() if isinstance(data, dict) else ()
    if {"Config", "Distiller"} <= set(keys):
        return Source(load_distilhubert(file), file.name, file_sha256(file), {"public_checkpoint": file.name})
    if {"cfg", "model"} <= set(keys) or holds_melhubert(data):
        return foreign_source(read_foreign(file))
    raise RdError(
        f"{file} is a file without a configuration in it",
        hint="of a public student add --config FILE.yaml; of other models give the folder that transformers reads",
    )


def attention_maps(source: Source, spec: ExportSpec, wave: np.ndarray) -> dict[int, np.ndarray]:
    """Head-averaged map (F, F) that each layer takes, on up to 3 s of ``wave``."""
    with torch.no_grad():
        samples = torch.from_numpy(wave[:MAP_SAMPLES])[None]
        output = source.student(samples, context=spec.chunk_context, with_maps=True)
    return {number: m[0].mean(0).numpy() for number, m in enumerate(output.maps, start=1)}


def describe_source(source: Source) -> dict[str, Any]:
    """``source`` of the manifest."""
    config = source.student.config
    return {
        "name": source.name,
        "sha256": source.sha256,
        "parameters": sum(p.numel() for p in source.student.parameters()),
        "student": dataclasses.asdict(config),
        "macs_per_second": int(sum(macs_per_second(config, seconds=10).values())),
        "provenance": source.provenance,
    }


def tool_versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of everything that took part."""
    versions = {}
    for name in ("reuse-distill", "numpy", *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions
