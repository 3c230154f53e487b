"""Run bundles: features of whole utterances and of streams, with NumPy and one inference engine."""

from runtime.encoder import Encoder
from runtime.errors import RdError
from runtime.framing import Frames
from runtime.stream import Stream


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
