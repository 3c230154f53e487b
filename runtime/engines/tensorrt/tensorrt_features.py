"""What the installed TensorRT can do, asked of the module itself: nothing follows from a version number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reuse_distill.runtime.engines.tensorrt.cuda_runtime import Cuda
from reuse_distill.runtime.errors import RdError, install_hint

INSTALL = f"JetPack: sudo apt install python3-libnvinfer; elsewhere: {install_hint('tensorrt')}"
FINISH_COMMAND = "rd-export finish {path}"
_FLAGS = ("FP16", "BF16", "INT8", "TF32", "OBEY_PRECISION_CONSTRAINTS")


@dataclass(frozen=True)
class TensorRTFeatures:
    """The parts of the Python API that differ between TensorRT 8.5 and 11."""

    version: str
    explicit_batch: bool  # 8.x needs the flag, 10.x takes it, 11 has none
    strongly_typed: bool  # from 9.1; the only mode of 11
    flags: frozenset[str]  # BuilderFlag members among those that matter here

    @property
    def weakly_typed(self) -> bool:
        """Whether the builder chooses precisions by flags: up to 10.16."""
        return "FP16" in self.flags


def load_tensorrt() -> Any:
    """The vendor's module. Raises RdError where it is not installed or its libraries do not load."""
    try:
        import tensorrt
    except ImportError as error:
        raise RdError(f"TensorRT for Python cannot be imported: {error}", hint=INSTALL) from None
    return tensorrt


def detect(trt: Any) -> TensorRTFeatures:
    """What the module ``trt`` offers."""
    creation = trt.NetworkDefinitionCreationFlag
    return TensorRTFeatures(
        version=str(trt.__version__),
        explicit_batch=hasattr(creation, "EXPLICIT_BATCH"),
        strongly_typed=hasattr(creation, "STRONGLY_TYPED"),
        flags=frozenset(name for name in _FLAGS if hasattr(trt.BuilderFlag, name)),
    )


def identify(features: TensorRTFeatures, cuda: Cuda) -> dict[str, Any]:
    """What an engine and its timing cache are bound to."""
    return {
        "tensorrt": features.version,
        "gpu": cuda.device_name(),
        "compute_capability": cuda.compute_capability(),
    }
