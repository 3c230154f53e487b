"""ONNX Runtime mobile: an ``.ort`` file and the operators that a reduced build of the runtime needs for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.proof import ProofGraph
from reuse_distill.export.proof.ort_graph import initialiser_names, read_ort
from reuse_distill.export.quantise.quantisation_recipe import Recipe
from reuse_distill.export.spec import ExportSpec
from reuse_distill.export.targets import Job, Made, Target
from reuse_distill.export.targets.onnx.layer_probe import LayerProbe
from reuse_distill.export.targets.onnx.onnx_target import ARTIFACT as ONNX_ARTIFACT
from reuse_distill.export.targets.onnx.onnx_target import OnnxTarget
from reuse_distill.export.targets.onnx.weight_packing import packed
from reuse_distill.export.targets.ort.ort_format import ARTIFACT, FOLDED, FOLDED_BYTES, OPERATORS, convert, keep_whole
from reuse_distill.runtime.errors import RdError

# `all` would turn the half-precision weights back into float32: on a CPU they are cast to it before every product.
LEVELS = {"fp16": "extended"}
LEVEL = "all"


class OrtTarget(Target):
    """The ONNX target's file, optimised and written in the format of mobile builds."""

    precisions = ("fp32", "fp16", "int8", "int8-dynamic", "int8-weights", "int4-weights")
    several_chunks = True

    def __init__(self) -> None:
        self._onnx = OnnxTarget()

    def recipe_values(self, recipe: Recipe) -> dict[str, Any]:
        """What the ONNX file can."""
        return self._onnx.recipe_values(recipe)

    def adapt(self, spec: ExportSpec) -> ExportSpec:
        """As the ONNX file."""
        return self._onnx.adapt(spec)

    def make(self, job: Job, candidate: str) -> Made:
        source = _source(job)
        source.parent.mkdir(exist_ok=True)
        made = self._onnx.make(dataclasses.replace(job, folder=source.parent), candidate)
        done = dict(made.quantisation)
        if job.spec.precision == "fp16":
            why = "ONNX Runtime has no half-precision kernel of it on CPUs"
            in_float = [{"node": name, "why": why} for name in keep_whole(source)]
            done["in_float"] = [*done.get("in_float", []), *in_float]
        level = LEVELS.get(job.spec.precision, LEVEL)
        job.say(f"converting to the .ort format, optimisation level {level}")
        _convert_small(source, job, level)
        return dataclasses.replace(made, artifact=ARTIFACT, quantisation=done, device=_device(level))

    def read_graph(self, artifact: Path) -> ProofGraph:
        return read_ort(artifact)

    def run(self, bundle: Path, job: Job, wave: np.ndarray) -> np.ndarray:
        return self._onnx.run(bundle, job, wave)

    def heads(self, bundle: Path, job: Job, wave: np.ndarray) -> dict[str, np.ndarray]:
        return self._onnx.heads(bundle, job, wave)

    def measured_by(self, job: Job) -> str:
        """What the parity of a manifest was measured with."""
        return "ONNX Runtime from the .ort file; layer by layer from the ONNX file that it was made of"

    def layers(self, bundle: Path, job: Job) -> Callable[[np.ndarray], list[np.ndarray]]:
        """Of the ONNX file before conversion: nothing can be added to an ``.ort`` file."""
        return LayerProbe.of_onnx(_source(job), job.captured, job.depth).run


def _convert_small(source: Path, job: Job, level: str) -> None:
    """Convert so that no weight is larger than in ``source``.

    Folding what unpacks a weight makes a float of it, unless an int8 operator takes it. Unpacking costs time at every
    call, so folding is tried first. Raises RdError where weights are floats either way.
    """
    for folded in FOLDED:
        convert(source, job.folder, job.scratch, level=level, folded=folded)
        lost = unpacked(source, job.folder / ARTIFACT)
        if not lost:
            return
    raise RdError(
        f"ONNX Runtime has unpacked {len(lost)} weights that were stored small, such as {lost[0]}",
        hint="see constraints.txt for the versions that this was verified with, or use --target onnx",
    )


def unpacked(source: Path, artifact: Path) -> list[str]:
    """Weights that the ONNX file ``source`` stores small and that are floats in the finished ``.ort`` file."""
    import onnx

    stored, names = packed(onnx.load(str(source))), initialiser_names(artifact)
    return [name for name, count in stored.items() if name in names and count * 4 > FOLDED_BYTES]


def _source(job: Job) -> Path:
    return job.scratch / "onnx" / ONNX_ARTIFACT


def _device(level: str) -> dict[str, Any]:
    """What whoever builds or ships the runtime has to know."""
    return {"required_operators": OPERATORS, "optimised_by_onnxruntime": level}
