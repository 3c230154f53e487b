"""The module ``tensorrt`` itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from .builder import Builder
from .cudart import FakeCudart
from .engine import Runtime
from .parser import Parser
from .surface import SURFACES, Sabotage

VERSIONS = {
    "8.5": "8.5.2.2",
    "8.6": "8.6.2.3",
    "10.3": "10.3.0.30",
    "10.13": "10.13.3",
    "10.16": "10.16.0",
    "11": "11.4.1",
}


class RecordedTensorrt:
    """The module ``tensorrt`` of one release."""

    def __init__(self, era: str, cudart: FakeCudart) -> None:
        self._era, self._cudart, self._log, self._sabotage = era, cudart, [], Sabotage()
        self.__version__ = VERSIONS[era]
        self.float32, self.float16, self.int64 = (
            np.dtype(np.float32),
            np.dtype(np.float16),
            np.dtype(np.int64),
        )
        for kind in ("BuilderFlag", "NetworkDefinitionCreationFlag", "MemoryPoolType", "ProfilingVerbosity"):
            self._enumeration(kind)
        for kind in ("LayerInformationFormat", "TensorIOMode"):
            self._enumeration(kind)
        severity = {name: i for i, name in enumerate(("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"))}
        self.ILogger = type("ILogger", (), {**severity, "__init__": lambda self: None})
        self.Logger = type("Logger", (), {**severity, "__init__": lambda self, least: None})

    def _enumeration(self, kind: str) -> None:
        setattr(self, kind, type(kind, (), {name: i for i, name in enumerate(SURFACES[self._era][kind])}))

    def nptype(self, kind: Any) -> Any:
        return np.dtype(kind).type

    def Builder(self, logger: Any) -> Any:
        return Builder(self, logger)

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        return Parser(self, network)

    def Runtime(self, logger: Any) -> Any:
        return Runtime(self)
