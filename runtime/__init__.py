"""Run bundles: features of whole utterances and of streams, with NumPy and one inference engine."""

import os

from runtime.encoder import Encoder
from runtime.errors import RdError
from runtime.framing import Frames
from runtime.stream import Stream

# The wheels of ONNX Runtime report to their maker, and keep an identifier in the user's cache and a file in the
# temporary folder for it, unless this is set before they are imported. `0` in the environment asks for it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> str:
    """``__version__``, looked up when asked for: the look-up loads an e-mail parser, 3 MB that a device can spare."""
    if name != "__version__":
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("reuse-distill")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"


__all__ = ["Encoder", "Frames", "RdError", "Stream", "__version__"]
