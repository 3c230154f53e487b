"""The captured module -> a ``.tflite`` in float32 with one signature, whose names are those of the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.targets.coreml.coreml_modules import friendly
from reuse_distill.export.targets.litert.fixed_length import FixedLength
from reuse_distill.export.targets.litert.litert_vendor import load, load_converter
from reuse_distill.export.targets.vendor_packages import telling
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.litert.litert_backend import DEFAULT_SIGNATURE


def convert(captured: Capture, file: Path) -> None:
    """Write ``captured`` to ``file``. Raises RdError with the converter's own message."""
    converter = load_converter()
    module = captured.module if isinstance(captured.module, FixedLength) else friendly(captured)
    with telling("LiteRT's converter could not convert the student"), torch.no_grad():
        converted = converter.convert(captured.whole(module).eval(), captured.example)
        converted.export(str(file))
    name_ports(file, captured.input_names, captured.output_names)


def name_ports(file: Path, inputs: list[str], outputs: list[str]) -> None:
    """The one signature's ports under the manifest's names; the converter numbers them in the module's order.

    Raises RdError where their numbers differ.
    """
    tools = load("ai_edge_litert.tools.flatbuffer_utils")
    model = tools.read_model(str(file))
    signatures = [one for one in model.signatureDefs or [] if _text(one.signatureKey) == DEFAULT_SIGNATURE]
    if len(signatures) != 1 or len(model.signatureDefs) != 1:
        raise RdError(f"{file.name}: {len(model.signatureDefs or [])} signatures, one is expected")
    for ports, names, prefix in (
        (signatures[0].inputs, inputs, "args_"),
        (signatures[0].outputs, outputs, "output_"),
    ):
        ordered = sorted(ports, key=lambda port: int(_text(port.name).removeprefix(prefix)))
        if len(ordered) != len(names):
            raise RdError(f"{file.name}: {len(ordered)} ports, {', '.join(names)} are expected")
        for port, name in zip(ordered, names, strict=True):
            port.name = name.encode()
    tools.write_model(model, str(file))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
