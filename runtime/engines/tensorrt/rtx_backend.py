"""TensorRT for RTX as a backend. Its engines and its Python API are TensorRT's but for what they are bound to.

An engine is bound to the exact version of TensorRT for RTX and to the compute capabilities that it was built for; the
kernels of the GPU at hand are made when it is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from reuse_distill.runtime.bundle_format.bundle import Bundle
from reuse_distill.runtime.engines.tensorrt.cuda_runtime import Cuda
from reuse_distill.runtime.engines.tensorrt.tensorrt_backend import TensorrtBackend
from reuse_distill.runtime.errors import RdError, install_hint

TARGET = "tensorrt-rtx"
INSTALL = install_hint("tensorrt-rtx")
# Fields of manifest.device.
VERSION, CAPABILITIES = "tensorrt_rtx", "compute_capabilities"


def load_tensorrt_rtx() -> Any:
    """The vendor's module. Raises RdError where it is not installed or its libraries do not load."""
    try:
        import_module("tensorrt_rtx_libs")  # first: the bindings find the libraries that it loads
        return import_module("tensorrt_rtx_bindings")
    except (ImportError, OSError) as error:
        raise RdError(f"TensorRT for RTX cannot be imported: {error}", hint=INSTALL) from None


def open_rtx(bundle: Bundle) -> TensorrtBackend:
    """The engine of ``bundle`` on this machine's GPU.

    Raises RdError where TensorRT for RTX or a GPU is missing, or the engine is bound to others.
    """
    return TensorrtBackend(bundle, load=load_tensorrt_rtx, check=check_rtx, provider=TARGET)


def check_rtx(bundle: Bundle, trt: Any, cuda: Cuda) -> None:
    """Raise RdError unless the engine was built by this version and for this GPU's compute capability."""
    device = bundle.manifest.device or {}
    again = f"export the bundle again with TensorRT for RTX {trt.__version__}"
    if device.get(VERSION) != str(trt.__version__):
        raise RdError(
            f"{bundle.path}: the engine was built by TensorRT for RTX {device.get(VERSION, 'unknown')}, "
            f"this machine has {trt.__version__}",
            hint=again,
        )
    here, built = cuda.compute_capability(), list(device.get(CAPABILITIES, []))
    if here not in built:
        raise RdError(
            f"{bundle.path}: the engine was built for compute capability {', '.join(built) or 'unknown'}, "
            f"this GPU ({cuda.device_name()}) has {here}",
            hint="export the bundle again with --gpu all, or with the name of this GPU",
        )
