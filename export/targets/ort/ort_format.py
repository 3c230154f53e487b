"""ONNX to ``.ort``: ONNX Runtime optimises the graph and saves it, as its own tool for mobile builds has it do.

Operators that it has no half-precision CPU kernel for get casts around them first. Without those its optimiser takes
them apart into elementary operations when it writes the file: that is slower, and no softmax is left to prove.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
