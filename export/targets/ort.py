"""ONNX Runtime mobile: an ``.ort`` file and the operators that a reduced build of the runtime needs for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from export.layers import LayerProbe
from export.ort.convert import ARTIFACT, OPERATORS, convert
from export.ort.islands import keep_whole
from export.proof import ProofGraph
from export.proof.ort_graph import read_ort
from export.quantise.recipe import Recipe
from export.spec import ExportSpec
from export.targets import Job, Made
from export.targets.onnx import ARTIFACT as ONNX_ARTIFACT
from export.targets.onnx import OnnxTarget
from runtime import Encoder

# `all` would turn the half-precision weights back into float32: on a CPU they are cast to it before every product.
LEVELS = {"fp16": "extended"}
LEVEL = "all"
# Kernels of float convolutions, int8 in the ONNX file, are float32 here: the converter folds what unpacks them.
UNPACKED = ("int8-dynamic", "int4-weights")


class OrtTarget:
    """The ONNX target's file, optimised and written in the format of mobile builds."""

    # No int8-weights: the converter folds DequantizeLinear of every weight, which makes it fp32 again, at any level.
    precisions = ("fp32", "fp16", "int8", "int8-dynamic", "int4-weights")
    modes = ("offline", "window", "streaming")

    def __init__(self) -> None:
        self._onnx = OnnxTarget()

    def candidates(self, spec: ExportSpec) -> tuple[str, ...]:
        """Those of the ONNX file."""
        return self._onnx.candidates(spec)

    def honours(self, recipe: Recipe) -> dict[str, Any]:
        """What the ONNX file can."""
        return self._onnx.honours(recipe)

    def make(self, job: Job, candidate: str) -> Made:
        source = _source(job)
        source.parent.mkdir(exist_ok=True)
        made = self._onnx.make(dataclasses.replace(job, folder=source.parent), candidate)
        done = dict(made.quantisation)
        if job.spec.precision == "fp16":
            why = "ONNX Runtime has no half-precision kernel of it on CPUs"
            in_float = [{"node": name, "why": why} for name in keep_whole(source)]
            done["in_float"] = [*done.get("in_float", []), *in_float]
        if job.spec.precision in UNPACKED:
            done["weights_unpacked"] = done.pop("weights_only")
        level = LEVELS.get(job.spec.precision, LEVEL)
        job.say(f"converting to the .ort format, optimisation level {level}")
        convert(source, job.folder, job.scratch, level=level)
        return dataclasses.replace(made, artifact=ARTIFACT, quantisation=done, device=_device(level))

    def read_graph(self, artifact: Path) -> ProofGraph:
        return read_ort(artifact)

    def run(self, bundle: Path, job: Job, wave: np.ndarray) -> np.ndarray:
        found = Encoder.load(bundle, provider="cpu").extract(wave)
        return found.reshape(len(job.spec.layers), -1, found.shape[-1])

    def measured_by(self, job: Job) -> str:
        """What the parity of a manifest was measured with."""
        return "ONNX Runtime from the .ort file; layer by layer from the ONNX file that it was made of"

    def layers(self, bundle: Path, job: Job) -> Callable[[np.ndarray], list[np.ndarray]]:
        """Of the ONNX file before conversion: nothing can be added to an ``.ort`` file."""
        return LayerProbe(_source(job), job.captured, job.depth).run


def _source(job: Job) -> Path:
    return job.scratch / "onnx" / ONNX_ARTIFACT


def _device(level: str) -> dict[str, Any]:
    """What whoever builds or ships the runtime has to know."""
    return {"required_operators": OPERATORS, "optimised_by_onnxruntime": level}
