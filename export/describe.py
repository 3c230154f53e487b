"""What a manifest and a report say about an export: its source, the tools, the attention maps."""

from __future__ import annotations

import dataclasses
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from reuse_distill.export.checkpoint_source import Source
from reuse_distill.export.spec import ExportSpec
from reuse_distill.student.cost import macs_per_second

MAP_SAMPLES = 48_000  # 3 s


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
