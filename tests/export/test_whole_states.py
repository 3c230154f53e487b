"""--states whole: steps that return their whole next states, which a GPU keeps in its own memory."""

from __future__ import annotations

import numpy as np
import pytest
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.bundle_format.stepspec import step_spec
from reuse_distill.runtime.engines.resident_pool import ResidentStatePool
from reuse_distill.runtime.streaming.whole_states import appended_states


@pytest.mark.parametrize("target", ["onnx", "ort"])
def test_a_stream_with_states_in_the_engines_memory(target: str, workshop, noise) -> None:
    """The very code of a GPU, in ONNX Runtime's memory on the CPU: exact, and the graph is proven."""
    folder = workshop.bundle("stream", "streaming", "fp32", "--target", target, "--states", "whole", "--batch", "1")
    manifest = read_bundle(folder).manifest
    assert not appended_states(step_spec(manifest))
    assert manifest.graph_proof is not None
    assert [(r.layer, r.source_layer) for r in manifest.graph_proof.reused] == [(2, 1), (4, 3)]
    plain = Encoder.load(workshop.bundle("stream", "streaming"), provider="cpu")
    encoder, wave = Encoder.load(folder, provider="cpu"), noise(320 * 50 + 123)
    encoder.backend.state_pool = lambda spec, rows: ResidentStatePool(spec, encoder.backend, rows)  # type: ignore[attr-defined]
    assert isinstance(encoder.stream().engine.pool, ResidentStatePool)
    assert np.abs(encoder.extract(wave) - plain.extract(wave)).max() < 1e-4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--states", "whole"), "--states whole is for --target onnx or ort --mode streaming"),
        (
            ("--mode", "streaming", "--states", "engine"),
            "--states engine is for --target coreml or openvino --mode streaming",
        ),
    ],
)
def test_where_it_makes_no_sense(words, message, workshop, run_export, tmp_path) -> None:
    run = run_export(workshop.checkpoint("stream"), *words, "--output", tmp_path / "bundle")
    assert run.status == 2
    assert message in run.err
