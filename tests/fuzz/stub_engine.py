"""The shipped encoder with an engine that computes nothing: its ports are those of the real graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.runtime.bundle_format.bundle import SHIPPED, Bundle
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.engines.backend import Port
from reuse_distill.runtime.engines.engine_choice import check_ports, check_runnable

MANIFEST: dict[str, Any] = json.loads((SHIPPED / "manifest.json").read_text())
SMALL = {  # in the place of the shipped files, which take long to hash
    "model.onnx": b"model",
    "selftest.npz": b"selftest",
    "report.html": b"report",
}


class StubEngine:
    """Ports of a graph; a run leaves its outputs as they are."""

    provider, placement, versions = "cpu", None, {"stub": "1"}

    def __init__(self, inputs: Mapping[str, Port], outputs: Mapping[str, Port]) -> None:
        self.inputs, self.outputs = inputs, outputs

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Features of as many frames as the wave has."""
        frames = (inputs["wave"].shape[1] - 400) // 320 + 1
        return {"features": np.zeros((1, 1, frames, 192), np.float32)}

    def bind(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Callable[[], None]:
        for ports, arrays in ((self.inputs, inputs), (self.outputs, outputs)):
            for name, array in arrays.items():
                fixed = [(a, b) for a, b in zip(ports[name].shape, array.shape, strict=True) if isinstance(a, int)]
                assert all(a == b for a, b in fixed), f"{name}: {array.shape} for {ports[name].shape}"
        return lambda: None


def real_ports() -> StubEngine:
    """The ports of the shipped graph."""
    backend = Encoder.load(SHIPPED).backend
    return StubEngine(dict(backend.inputs), dict(backend.outputs))


def encoder_of(bundle: Bundle, engine: StubEngine) -> Encoder:
    """As ``Encoder.load`` and its first use do, but for opening the artifact. Raises RdError as they do."""
    check_runnable(bundle, "auto")
    encoder = Encoder(bundle, provider="auto", threads=1)
    check_ports(bundle, engine)
    encoder._backend = engine
    return encoder


def small_folder(folder: Path) -> dict[str, Any]:
    """Write small files into ``folder``; the shipped manifest with their hashes."""
    import hashlib

    manifest = json.loads(json.dumps(MANIFEST))
    for name, entry in manifest["files"].items():
        data = SMALL[name]
        (folder / name).write_bytes(data)
        entry.update(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    return manifest
