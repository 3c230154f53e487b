"""What runs an artifact: the Protocol that the rest of the runtime knows; ``engine_choice`` opens one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Port:
    """One input or output as the engine sees it; unknown axes are strings."""

    name: str
    dtype: str  # NumPy name
    shape: tuple[int | str, ...]


class Backend(Protocol):
    """A loaded artifact. Safe to use from several threads; it keeps no state of any stream."""

    @property
    def provider(self) -> str:
        """The provider that really runs, by our name (cpu, cuda, …)."""

    @property
    def placement(self) -> Mapping[str, int] | None:
        """Nodes per provider, or None where the engine does not tell."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Names and versions of the engine's parts."""

    @property
    def inputs(self) -> Mapping[str, Port]: ...

    @property
    def outputs(self) -> Mapping[str, Port]: ...

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once on inputs of any allowed shape; new output arrays by name."""

    def bind(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """A call that runs on exactly these buffers: reads ``inputs``, writes ``outputs``, allocates neither.

        The arrays are C-contiguous, stay where they are, and no output shares memory with an input.
        """
