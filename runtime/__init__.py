"""Run bundles: features of whole utterances and of streams, with NumPy and one inference engine."""

from importlib.metadata import PackageNotFoundError, version

from runtime.encoder import Encoder
from runtime.errors import RdError
from runtime.framing import Frames
from runtime.stream import Stream

try:
    __version__ = version("reuse-distill")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = ["Encoder", "Frames", "RdError", "Stream", "__version__"]
