"""ONNX to ``.ort`` by the tool that comes with ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import RdError

ARTIFACT = "model.ort"
OPERATORS = "required_operators_and_types.config"
LEVEL_VARIABLE = "ORT_CONVERT_ONNX_MODELS_TO_ORT_OPTIMIZATION_LEVEL"


def convert(source: Path, folder: Path, scratch: Path, *, level: str) -> None:
    """Write ``model.ort`` and the list of operators and types that a reduced build needs into ``folder``.

    ``level`` is ONNX Runtime's: basic, extended, all. The file is optimised once, here: the runtime of a device runs an
    ``.ort`` file as it is. Raises RdError with the tool's own message.
    """
    made = scratch / "ort"
    shutil.rmtree(made, ignore_errors=True)
    said = io.StringIO()
    try:
        from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

        logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)
        with contextlib.redirect_stdout(said), _level(level), _quiet():
            convert_onnx_models_to_ort(
                source,
                output_dir=made,
                optimization_styles=[OptimizationStyle.Fixed],
                target_platform="arm",  # no blocked layout of x86, 8-bit operators as they are
                enable_type_reduction=True,
            )
    except Exception as error:  # the tool's errors have no common base
        raise RdError(
            f"ONNX Runtime's converter could not make an .ort file: {str(error).strip() or type(error).__name__}",
            hint="see constraints.txt for the versions that this was verified with; --target onnx needs no conversion",
        ) from error
    shutil.move(next(made.glob("*.ort")), folder / ARTIFACT)
    (folder / OPERATORS).write_text(_operators(next(made.glob("*.config")).read_text()), encoding="utf-8")


def _operators(text: str) -> str:
    """The tool's list, without the path of the file on this machine."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return "\n".join([f"# Operators and types of {ARTIFACT}, for --include_ops_by_config", *lines]) + "\n"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tool's session warns about constants that its own optimiser has left over: not the user's concern."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # ONNX Runtime's own default


@contextlib.contextmanager
def _level(level: str) -> Iterator[None]:
    """The tool takes its optimisation level from the environment only."""
    before = os.environ.get(LEVEL_VARIABLE)
    os.environ[LEVEL_VARIABLE] = level
    try:
        yield
    finally:
        if before is None:
            del os.environ[LEVEL_VARIABLE]
        else:
            os.environ[LEVEL_VARIABLE] = before
