"""Who takes the operations: XNNPACK on any CPU. Core ML's and Qualcomm's delegates are refused with the reason."""

from __future__ import annotations

import os
from typing import Any

from export.executorch.vendor import load
from runtime.errors import RdError, nearest

DELEGATES = ("xnnpack", "coreml", "qualcomm")
UNITS = {"XnnpackBackend": "xnnpack", "CoreMLBackend": "coreml", "QnnBackend": "qualcomm", "portable": "portable"}


def partitioners(delegate: str, *, precision: str) -> list[Any]:
    """ExecuTorch's own partitioners for ``delegate``; raises RdError for one that cannot be had, with the reason."""
    check_delegate(delegate)
    found = load("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    if precision != "int8-dynamic":
        return [found.XnnpackPartitioner()]
    # Dynamic int8 products each get a delegate of their own, or XNNPACK computes them in float.
    return [found.XnnpackDynamicallyQuantizedPartitioner(), found.XnnpackPartitioner()]


def check_delegate(delegate: str) -> None:
    """Raises RdError for a delegate that is unknown or cannot be had."""
    if delegate not in DELEGATES:
        raise RdError(f"--delegate {delegate!r} is unknown", hint=nearest(delegate, list(DELEGATES)))
    if delegate == "coreml":
        raise _no_coreml()
    if delegate == "qualcomm":
        raise _no_qualcomm()


def _no_coreml() -> RdError:
    """A bundle is proven and compared before it is written; of this delegate's programs neither can be done yet."""
    return RdError(
        "--delegate coreml is not possible yet: nothing here reads the package that this delegate puts into a program, "
        "and only Apple's devices run it",
        hint="--target coreml makes a package for the same units, proven and compared anywhere",
    )


def _no_qualcomm() -> RdError:
    sdk = os.environ.get("QNN_SDK_ROOT")
    found = f"QNN_SDK_ROOT is {sdk}" if sdk else "QNN_SDK_ROOT is not set"
    return RdError(
        f"--delegate qualcomm is not possible yet: it needs Qualcomm's AI Engine Direct SDK ({found}), and "
        "nothing here reads the binary for one chip that the SDK packs into a program",
        hint="--target onnx runs on these chips through ONNX Runtime's provider qnn",
    )
