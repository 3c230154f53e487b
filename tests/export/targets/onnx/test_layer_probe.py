"""The probe inside an artifact gives what torch has after every layer, in every mode and precision."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.parity.reference import reference_layers
from reuse_distill.export.targets.onnx.layer_probe import LayerProbe, with_layer_outputs
from reuse_distill.runtime.geometry import samples_for


@pytest.mark.parametrize(("name", "mode"), [("shared", "offline"), ("shared", "window"), ("stream", "streaming")])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_layers_of_the_artifact(name: str, mode: str, precision: str, workshop, spec_of, noise) -> None:
    artifact = workshop.bundle(name, mode, precision) / "model.onnx"
    digest = hashlib.sha256(artifact.read_bytes()).digest()
    student, spec, wave = workshop.student(name), spec_of(mode), noise(samples_for(43) + 100)
    found = LayerProbe.of_onnx(artifact, capture(student, spec), 4).run(wave)
    wanted = reference_layers(student, spec, wave)
    assert len(found) == 4
    for layer, (a, b) in enumerate(zip(found, wanted, strict=True), start=1):
        assert a.dtype == np.float32
        assert np.abs(a - b).max() <= {"fp32": 1e-4, "fp16": 0.05}[precision], f"layer {layer}"
    assert len({round(float(np.abs(x).sum()), 3) for x in wanted}) == 4, "layers differ from each other"
    assert hashlib.sha256(artifact.read_bytes()).digest() == digest


def test_outputs_are_added_once(workshop) -> None:
    artifact = workshop.bundle("shared", "offline") / "model.onnx"
    model, names = with_layer_outputs(artifact, 4, workshop.student("shared").config)
    assert len(set(names)) == 4
    assert [v.name for v in model.graph.output] == ["features", *names]
