"""A stream that begins on one engine and goes on on others, in the middle of an utterance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from reuse_distill.export.spec import ExportSpec, Streaming
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.geometry import samples_for
from reuse_distill.student import ChunkContext, preset

from .conftest import CHUNK, LEFT, SMALLEST, exported, randomised

ENGINES = ("onnx", "executorch", "openvino")
EXACT = 1e-4  # each engine's own bound in fp32


@pytest.fixture(scope="module")
def student():
    return randomised(preset("tiny-stream", **SMALLEST))


@pytest.fixture(scope="module")
def bundles(student, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One student for every engine that runs here; ExecuTorch's with a fixed batch, as it has to be."""
    for package in ENGINES[1:]:
        pytest.importorskip(package)
    clip = np.random.default_rng(0).normal(0, 0.1, samples_for(40)).astype(np.float32)
    made = {}
    for target in ENGINES:
        mode = Streaming(ChunkContext(CHUNK, LEFT), 1 if target == "executorch" else None)
        spec = ExportSpec(target, mode, "fp32", (2,), "hidden")
        made[target] = exported(student, spec, tmp_path_factory.mktemp("moving") / target, [clip]).folder
    return made


@pytest.mark.slow
def test_a_stream_moves_between_engines_and_back(student, bundles, moved) -> None:
    """ONNX Runtime, ExecuTorch, OpenVINO, ONNX Runtime, not at the edges of chunks: parity of all frames with torch."""
    manifests = [read_bundle(folder).manifest for folder in bundles.values()]
    assert len({manifest.snapshot["layout"] for manifest in manifests}) == 1
    wave = np.random.default_rng(1).normal(0, 0.1, samples_for(120) + 77).astype(np.float32)
    encoders = [Encoder.load(bundles[engine], provider="auto") for engine in (*ENGINES, ENGINES[0])]
    found, saved = moved(encoders, wave, (9001, 17_777, 30_003))
    with torch.no_grad():
        expected = student(torch.from_numpy(wave)[None], context=ChunkContext(CHUNK, LEFT)).layers[1][0].numpy()
    assert found.shape == expected.shape
    difference = float(np.abs(found - expected).max())
    print(f"moved three times: largest difference to torch {difference:.2e}, snapshot of {len(saved)} bytes")
    assert difference <= EXACT
