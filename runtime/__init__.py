"""Run bundles: features of whole utterances and of streams, with NumPy and one inference engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# The wheels of ONNX Runtime report to their maker, and keep an identifier in the user's cache and a file in the
# temporary folder for it, unless this is set before they are imported. `0` in the environment asks for it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    import numpy as np
    from reuse_distill.runtime.bundle_format.bundle import SHIPPED
    from reuse_distill.runtime.encoder import Encoder
    from reuse_distill.runtime.errors import RdError
    from reuse_distill.runtime.streaming.dial import ByLoad, by_battery, by_temperature, largest_of
    from reuse_distill.runtime.streaming.framing import Frames
    from reuse_distill.runtime.streaming.stream import Stream
    from reuse_distill.runtime.streaming.stream_scheduler import ScheduledStream, StreamScheduler

    __version__: str

__all__ = [
    "SHIPPED",
    "ByLoad",
    "Encoder",
    "Frames",
    "RdError",
    "ScheduledStream",
    "Stream",
    "StreamScheduler",
    "__version__",
    "by_battery",
    "by_temperature",
    "extract",
    "largest_of",
    "load",
]

# Imported when asked for: a command line that only explains itself needs no NumPy.
_MODULES = {
    "Encoder": "encoder",
    "Frames": "streaming.framing",
    "RdError": "errors",
    "SHIPPED": "bundle_format.bundle",
    "Stream": "streaming.stream",
    **dict.fromkeys(("ScheduledStream", "StreamScheduler"), "streaming.stream_scheduler"),
    **dict.fromkeys(("ByLoad", "by_battery", "by_temperature", "largest_of"), "streaming.dial"),
}


def load(path: str | os.PathLike[str] | None = None, provider: str = "auto", threads: int = 1) -> Encoder:
    """The encoder of a bundle, of the shipped one by default; see ``Encoder.load``."""
    from reuse_distill.runtime.bundle_format.bundle import SHIPPED
    from reuse_distill.runtime.encoder import Encoder

    return Encoder.load(SHIPPED if path is None else path, provider=provider, threads=threads)


def extract(audio: str | os.PathLike[str], bundle: str | os.PathLike[str] | None = None) -> np.ndarray:
    """Features of an audio file: float32 (F, W), one row every 20 ms. Raises RdError for what cannot be read."""
    from reuse_distill.runtime.audio.audio_files import read_audio

    recording = read_audio(audio)
    return load(bundle).extract(recording.samples, recording.sample_rate_hz)


def __getattr__(name: str) -> Any:
    """The public names, and ``__version__``, whose look-up loads an e-mail parser: 3 MB that a device can spare."""
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"reuse_distill.runtime.{_MODULES[name]}"), name)
    if name != "__version__":
        raise AttributeError(f"module 'reuse_distill.runtime' has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("reuse-distill")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"
