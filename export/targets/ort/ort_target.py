"""ONNX Runtime mobile: an ``.ort`` file and the operators that a reduced build of the runtime needs for it.

ONNX Runtime optimises the graph and saves it, as its own tool for mobile builds has it do. Operators that it has no
half-precision CPU kernel for get casts around them first. Without those its optimiser takes them apart into elementary
operations when it writes the file: that is slower, and no softmax is left to prove.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Callable, Iterator
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
from reuse_distill.runtime.errors import RdError

ARTIFACT = "model.ort"
OPERATORS = "required_operators_and_types.config"
# Constants above this size are left as they are computed: of ours, these are the kernels that are stored small.
FOLDED_BYTES = 256
FOLDING = "optimization.constant_folding_max_output_size_in_bytes"  # ONNX Runtime 1.23 does not know it
FOLDED = ("all", "small", "none")  # constants that are computed now
TAKEN_APART = ("Softmax", "Gelu")
TO_FLOAT = 1  # of ONNX's Cast


def convert(source: Path, folder: Path, scratch: Path, *, level: str, folded: str = "all") -> None:
    """Write ``model.ort`` and the list of operators and types that a reduced build needs into ``folder``.

    ``level`` is ONNX Runtime's: basic, extended, all. The file is optimised once, here: the runtime of a device runs an
    ``.ort`` file as it is. ``folded`` is one of FOLDED: with ``all``, what unpacks a weight is folded too.
    Raises RdError with ONNX Runtime's own message.
    """
    made = scratch / "ort"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        import onnxruntime
        from onnxruntime.tools.ort_format_model import create_config_from_models

        logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}")
        options.optimized_model_filepath = str(made / ARTIFACT)
        options.add_session_config_entry("session.save_model_format", "ORT")
        options.add_session_config_entry("session.qdqisint8allowed", "1")  # 8-bit operators as they are: for Arm
        if folded == "small":
            options.add_session_config_entry(FOLDING, str(FOLDED_BYTES))
        with _quiet():  # NchwcTransformer makes the blocked layout of x86
            onnxruntime.InferenceSession(
                str(source),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["NchwcTransformer", *(["ConstantFolding"] if folded == "none" else [])],
            )
            create_config_from_models([made / ARTIFACT], made / OPERATORS, True)
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise RdError(
            f"ONNX Runtime's converter could not make an .ort file: {str(error).strip() or type(error).__name__}",
            hint="see constraints.txt for the versions that this was verified with; --target onnx needs no conversion",
        ) from error
    shutil.move(made / ARTIFACT, folder / ARTIFACT)
    (folder / OPERATORS).write_text(_operators((made / OPERATORS).read_text()), encoding="utf-8")


def _operators(text: str) -> str:
    """The tool's list, without the path of the file on this machine."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return "\n".join([f"# Operators and types of {ARTIFACT}, for --include_ops_by_config", *lines]) + "\n"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The session warns about constants that its own optimiser has left over: not the user's concern."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # ONNX Runtime's own default


def keep_whole(file: Path) -> list[str]:
    """Compute every softmax and GELU of a half-precision ONNX file in float32; returns the names of their nodes."""
    import onnx_ir as ir

    model, kept = ir.load(file), []
    for node in list(model.graph):
        if node.op_type not in TAKEN_APART or _follows_cast_to_float(node):
            continue
        made = ir.tape.Tape()
        wide = made.op("Cast", [node.inputs[0]], {"to": ir.DataType.FLOAT}, name=f"{node.name}_to_float")
        result = made.op(node.op_type, [wide], node.attributes, name=node.name)
        narrow = made.op("Cast", [result], {"to": ir.DataType.FLOAT16}, name=f"{node.name}_to_half")
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], made.nodes, node.outputs, [narrow])
        kept.append(str(node.name))
    ir.save(model, file)
    return kept


def _follows_cast_to_float(node: Any) -> bool:
    """Whether a converter has put the node between casts already."""
    before = node.inputs[0].producer()
    return before is not None and before.op_type == "Cast" and before.attributes.get_int("to") == TO_FLOAT


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

    def outputs(self, bundle: Path, job: Job, wave: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return self._onnx.outputs(bundle, job, wave)

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
