"""A stream that goes on in a Core ML package: the runtime's own streams over the evaluator."""

from __future__ import annotations

import numpy as np
import pytest
from reuse_distill.export.spec import ExportSpec, Streaming
from reuse_distill.export.targets.coreml.coreml_sessions import evaluated
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import SHIPPED, read_bundle
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import samples_for
from reuse_distill.student import ChunkContext

EXACT = 1e-4


@pytest.fixture(scope="module")
def by_onnx(stream_student, exported, clips, tmp_path_factory):
    """The same student for ONNX Runtime, with the same context."""
    spec = ExportSpec("onnx", Streaming(ChunkContext(4, 6)), "fp32", (1, 2), "heads")
    return exported(stream_student, spec, tmp_path_factory.mktemp("onnx") / "bundle", clips).folder


@pytest.mark.slow
def test_a_stream_moves_between_onnx_runtime_and_core_ml(export_one, by_onnx, moved):
    """There, back and there again in mid-utterance, not at the edges of chunks; against ONNX Runtime alone."""
    onnx, coreml = Encoder.load(by_onnx), evaluated(export_one("streaming", "fp32").folder)
    assert onnx.manifest.snapshot["layout"] == coreml.manifest.snapshot["layout"]
    assert coreml.provider == "evaluator" and "coreml" in coreml.manifest.snapshot["targets"]
    wave = np.random.default_rng(1).normal(0, 0.1, samples_for(40) + 77).astype(np.float32)
    found, _ = moved((onnx, coreml, onnx, coreml), wave, (3001, 6007, 9500))
    difference = float(np.abs(found - onnx.extract(wave)).max())
    print(f"moved three times: largest difference to ONNX Runtime alone {difference:.2e}")
    assert difference <= EXACT


@pytest.mark.slow
def test_states_of_other_types_are_refused(export_one, by_onnx):
    half, single = evaluated(export_one("streaming", "fp16").folder), Encoder.load(by_onnx)
    assert half.manifest.snapshot["layout"] != single.manifest.snapshot["layout"]
    assert half.manifest.snapshot["state_types"] == ["float16"]
    stream = single.stream()
    stream.push(np.zeros(9000, np.float32))
    with pytest.raises(RdError, match="float16"):
        half.stream().restore(stream.snapshot())


def test_where_core_ml_keeps_the_states_nothing_moves_and_the_manifest_says_so(export_one):
    folder = export_one("streaming", "fp16", states="engine").folder
    assert read_bundle(folder).manifest.snapshot == {"moves_to": "nowhere: the engine keeps the states itself"}
    with pytest.raises(RdError, match="keeps its states itself"):
        evaluated(folder)


def test_other_bundles_are_refused():
    with pytest.raises(RdError, match="streaming for onnx, a stream for coreml is needed"):
        evaluated(SHIPPED)
