"""The smallest students, and programs of them made once for all tests of this folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.export.proof import ProofGraph
from reuse_distill.export.proof.executorch_graph import nodes_of
from reuse_distill.export.spec import ExportSpec, Mode, Offline, SlidingWindow, Streaming, WindowContext
from reuse_distill.export.targets.executorch.pte_program import PteOperation, PteProgram, read_program
from reuse_distill.student import ChunkContext, Student


def value_product(made: Any) -> tuple[PteProgram, int]:
    """A finished program, and where the value product of its reusing layer stands in it."""
    program, name = read_program(made.artifact), made.manifest.graph_proof.reused[0].value_product
    return program, next(i for i, operation in enumerate(program.operations) if operation.name == name)


def altered(program: PteProgram, at: int, *operations: PteOperation) -> ProofGraph:
    """The program's graph with the operation at ``at`` replaced."""
    rest = (*program.operations[:at], *operations, *program.operations[at + 1 :])
    return ProofGraph("model.pte", tuple(nodes_of(dataclasses.replace(program, operations=rest))))


@pytest.fixture(scope="session", name="value_product")
def _value_product() -> Callable[..., tuple[PteProgram, int]]:
    return value_product


@pytest.fixture(scope="session", name="altered")
def _altered() -> Callable[..., ProofGraph]:
    return altered


@pytest.fixture(scope="session")
def executorch() -> Any:
    return pytest.importorskip("executorch.exir", reason="executorch is not installed (the extra executorch)")


@pytest.fixture(scope="session")
def make_spec(with_mode: Callable[..., ExportSpec]) -> Callable[..., ExportSpec]:
    """An ExportSpec by mode and precision, both layers exported."""

    modes: dict[str, Mode] = {
        "offline": Offline(4.0),
        "window": SlidingWindow(WindowContext(6, 4, 5)),
        "streaming": Streaming(ChunkContext(4, 6)),
    }

    def make(name: str, precision: str = "fp32", **changes: Any) -> ExportSpec:
        return with_mode(ExportSpec("executorch", modes[name], precision, (1, 2), "heads"), **changes)

    return make


@pytest.fixture(scope="session")
def clips() -> list[np.ndarray]:
    return [speech_like(320 * 60 + 123, seed=1), speech_like(400, seed=2)]


@pytest.fixture(scope="session")
def export_one(
    executorch: Any,
    between_processes: Callable[[str], Path],
    make_student: Callable[..., Student],
    make_spec: Callable[..., ExportSpec],
    clips: list[np.ndarray],
    exported: Callable[..., Any],
) -> Callable[..., Any]:
    """Export once per mode and precision (and whatever else is requested); the same bundle afterwards."""
    made: dict[str, Any] = {}

    def export(mode: str, precision: str = "fp32", *, min_cosine: float | None = None, **changes: Any) -> Any:
        key = json.dumps([mode, precision, {name: str(value) for name, value in changes.items()}])
        if key not in made:
            student = make_student("tiny-stream") if mode == "streaming" else make_student("tiny", lookahead_frames=7)
            digest = hashlib.sha256(key.encode()).hexdigest()[:8]
            folder = between_processes("executorch") / f"{mode}-{precision}-{digest}"
            made[key] = exported(student, make_spec(mode, precision, **changes), folder, clips, min_cosine=min_cosine)
        return made[key]

    return export
