"""ONNX -> OpenVINO's IR: converted, written without notes of the machine that made it, and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reuse_distill.runtime.engines.openvino.openvino_backend import last_line
from reuse_distill.runtime.engines.openvino.openvino_device import load_openvino
from reuse_distill.runtime.errors import RdError


def convert_onnx(file: Path) -> Any:
    """The plain ONNX file as an OpenVINO model in float32. Raises RdError with the converter's own message."""
    openvino = load_openvino()
    try:
        return openvino.convert_model(str(file))
    except Exception as error:  # the converter's errors have no common base of their own
        raise RdError(
            f"OpenVINO could not convert the student: {last_line(error)}",
            hint="see constraints.txt for the versions that this was verified with",
        ) from error


def save_ir(model: Any, file: Path, *, half_weights: bool = False) -> None:
    """Write ``file`` (``.xml``) and its ``.bin``; ``half_weights``: constants are stored in float16."""
    openvino = load_openvino()
    notes = model.get_rt_info()
    for name in ("conversion_parameters", "nncf"):  # the converter's and the quantiser's command lines
        if name in notes:
            del notes[name]
    openvino.save_model(model, str(file), compress_to_fp16=half_weights)
