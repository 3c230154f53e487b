"""The tests' store of converted graphs takes graphs for the same only where their heads are the same too.

It once ignored heads: a test of four heads was given the graph of five, and the proof refused it by its weights.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from reuse_distill.export.capture.capture import Capture, capture
from reuse_distill.export.spec import ExportSpec, Offline
from reuse_distill.runtime.tasks import TaskOutput
from reuse_distill.student import preset
from reuse_distill.student.tasks import HeadConfig, LoadedHead, TaskHead

from ..export.conftest import SMALLEST, fingerprint, lively

SPEC = ExportSpec("onnx", Offline(), "fp32", (2,), "hidden")


def head(name: str, size: int, *, seed: int = 0) -> LoadedHead:
    torch.manual_seed(seed)
    config = HeadConfig(TaskOutput(name, "units", size), "0" * 64, (2,), 32)
    return LoadedHead(TaskHead(config).eval().requires_grad_(False), "0" * 64)


@pytest.fixture(scope="module")
def of_heads() -> dict[str, Capture]:
    student = lively(preset("tiny-stream", **SMALLEST))
    heads = {
        "one": (head("units", 6),),
        "named": (head("other", 6),),
        "wider": (head("units", 7),),
        "trained again": (head("units", 6, seed=1),),
        "two": (head("units", 6), head("more", 6)),
    }
    captured = {name: capture(student, dataclasses.replace(SPEC, tasks=tasks)) for name, tasks in heads.items()}
    alone = dataclasses.replace(SPEC, tasks=heads["one"], shown=())
    return {**captured, "none": capture(student, SPEC), "alone": capture(student, alone)}


def test_other_heads_are_another_graph(of_heads: dict[str, Capture]) -> None:
    prints = {name: fingerprint(captured) for name, captured in of_heads.items()}
    assert len(set(prints.values())) == len(of_heads), prints
    assert fingerprint(dataclasses.replace(of_heads["one"])) == prints["one"]
