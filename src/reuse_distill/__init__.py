"""Speech encoders for devices: distil, export, stream, and hold a latency budget.

The folders at the top of the repository are the subpackages: ``reuse_distill.student``, ``.distill``, ``.export``,
``.runtime`` and ``.devices``. What a device needs can be used from here, without PyTorch:

>>> import reuse_distill as rd
>>> encoder = rd.load()                      # the shipped bundle, or rd.load("path/to/bundle")
>>> features = rd.extract("talk.wav")        # (frames, channels), one row every 20 ms
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reuse_distill.runtime import Encoder, Frames, RdError, Stream, __version__, extract, load

__all__ = ["Encoder", "Frames", "RdError", "Stream", "__version__", "extract", "load"]


def __getattr__(name: str) -> Any:
    """Names of ``reuse_distill.runtime``, imported when needed: subpackages without it stay light."""
    if name not in __all__:
        raise AttributeError(f"module 'reuse_distill' has no attribute {name!r}")
    from reuse_distill import runtime

    return getattr(runtime, name)
