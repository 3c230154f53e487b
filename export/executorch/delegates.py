"""Who takes the operations: XNNPACK on any CPU, Core ML on Apple's devices, Qualcomm's HTP with their SDK."""

from __future__ import annotations

import os
from typing import Any

from export.executorch.vendor import load
from runtime.errors import RdError, nearest

DELEGATES = ("xnnpack", "coreml", "qualcomm")
UNITS = {"XnnpackBackend": "xnnpack", "CoreMLBackend": "coreml", "QnnBackend": "qualcomm", "portable": "portable"}


def partitioners(delegate: str, *, precision: str) -> list[Any]:
    """ExecuTorch's own partitioners for ``delegate``.

    Raises RdError that names what to install where its packages are not there.
    """
    if delegate == "xnnpack":
        return _xnnpack(precision)
    if delegate == "coreml":
        return [load("executorch.backends.apple.coreml.partition").CoreMLPartitioner()]
    if delegate == "qualcomm":
        raise _no_qualcomm()
    raise RdError(f"--delegate {delegate!r} is unknown", hint=nearest(delegate, list(DELEGATES)))


def check_delegate(delegate: str) -> None:
    """Raises RdError for a delegate that is unknown or cannot be had, before anything is converted."""
    partitioners(delegate, precision="fp32")


def _xnnpack(precision: str) -> list[Any]:
    """Dynamic int8 products each get a delegate of their own, or XNNPACK computes them in float."""
    found = load("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    if precision != "int8-dynamic":
        return [found.XnnpackPartitioner()]
    return [found.XnnpackDynamicallyQuantizedPartitioner(), found.XnnpackPartitioner()]


def _no_qualcomm() -> RdError:
    sdk = os.environ.get("QNN_SDK_ROOT")
    found = f"QNN_SDK_ROOT is {sdk}" if sdk else "QNN_SDK_ROOT is not set"
    return RdError(
        f"--delegate qualcomm needs Qualcomm's AI Engine Direct SDK and an ExecuTorch built with it; {found}",
        hint="the wheels of ExecuTorch have no Qualcomm backend; --target onnx runs on QNN through ONNX Runtime",
    )
