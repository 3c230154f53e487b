"""Who takes the operations: XNNPACK on any CPU, Core ML on Apple's devices. Qualcomm's is refused with the reason.

ExecuTorch's own packages are imported when needed.
"""

from __future__ import annotations

import os
from typing import Any

from reuse_distill.export.targets.vendor_packages import coremltools, imported
from reuse_distill.runtime.errors import RdError, install_hint, nearest

DELEGATES = ("xnnpack", "coreml", "qualcomm")
UNITS = {"XnnpackBackend": "xnnpack", "CoreMLBackend": "coreml", "QnnBackend": "qualcomm", "portable": "portable"}
PRECISIONS = {"xnnpack": ("fp32", "int8", "int8-dynamic"), "coreml": ("fp32", "fp16")}
COREML_PACKAGE = "iOS15"  # packages from iOS 16 on have outputs in half precision, the program has them in float
COREML_SYSTEM = "iOS16"  # the oldest that ExecuTorch's own delegate runs on
HINT = install_hint("export", "executorch")


def partitioners(delegate: str, *, precision: str) -> list[Any]:
    """ExecuTorch's own partitioners for ``delegate``; raises RdError for one that is not available, with the reason."""
    check_delegate(delegate, precision=precision)
    if delegate == "coreml":
        return [_coreml(precision)]
    module = load("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    if precision != "int8-dynamic":
        return [module.XnnpackPartitioner()]
    # Dynamic int8 products each get a delegate of their own, or XNNPACK computes them in float.
    return [module.XnnpackDynamicallyQuantizedPartitioner(), module.XnnpackPartitioner()]


def _coreml(precision: str) -> Any:
    """The whole program or nothing: what stays outside could neither be compared nor run here."""
    ct = coremltools()
    backend = load("executorch.backends.apple.coreml.compiler").CoreMLBackend
    specs = backend.generate_compile_specs(
        minimum_deployment_target=getattr(ct.target, COREML_PACKAGE),
        compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
    )
    partition = load("executorch.backends.apple.coreml.partition")
    return partition.CoreMLPartitioner(compile_specs=specs, lower_full_graph=True)


def check_delegate(delegate: str, *, precision: str) -> None:
    """Raises RdError for a delegate that is unknown or is not available, and for a precision that it does not have."""
    if delegate not in DELEGATES:
        raise RdError(f"--delegate {delegate!r} is unknown", hint=nearest(delegate, list(DELEGATES)))
    if delegate == "qualcomm":
        raise _no_qualcomm()
    if precision not in PRECISIONS[delegate]:
        raise RdError(
            f"--precision {precision} is not possible with --delegate {delegate}",
            hint=f"known: {', '.join(PRECISIONS[delegate])}; --target coreml and --target onnx have more",
        )


def _no_qualcomm() -> RdError:
    sdk = os.environ.get("QNN_SDK_ROOT")
    state = f"QNN_SDK_ROOT is {sdk}" if sdk else "QNN_SDK_ROOT is not set"
    return RdError(
        f"--delegate qualcomm is not possible yet: it needs Qualcomm's AI Engine Direct SDK ({state}), and "
        "nothing here reads the binary for one chip that the SDK packs into a program",
        hint="--target onnx runs on these chips through ONNX Runtime's provider qnn",
    )


def load(module: str) -> Any:
    """The module ``module`` of ExecuTorch or torchao; raises RdError that names the extra where it is missing."""
    return imported(module, hint=HINT)
