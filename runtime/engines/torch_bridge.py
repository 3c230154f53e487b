"""ExecuTorch's Python runtime, behind NumPy.

Its bindings import torch and take torch tensors, so this one module of the runtime does too, when a program is opened
and never before. The tensors are views of NumPy arrays: nothing is converted. On a device the C++ runtime needs none
of this.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.runtime.errors import RdError, install_hint

HINT = f"{install_hint('executorch')}; on a device use ExecuTorch's C++ runtime (docs/executorch.md)"


class Bridge:
    """torch and ExecuTorch's bindings. Raises RdError that names the extra where they are missing."""

    def __init__(self) -> None:
        try:
            with quiet(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import torch
                from executorch.extension.pybindings import portable_lib
        except ImportError as error:
            raise RdError(f"{error.name or 'executorch'} is not installed", hint=HINT) from None
        self._torch, self._library = torch, portable_lib

    @property
    def versions(self) -> dict[str, str]:
        return {"executorch": version("executorch"), "torch": self._torch.__version__, "numpy": np.__version__}

    @property
    def delegates(self) -> list[str]:
        """Backends that these bindings were built with, by ExecuTorch's names."""
        return list(self._library._get_registered_backend_names())

    @property
    def threads(self) -> int:
        """Size of the process's thread pool."""
        with quiet():  # the first call looks at the processor, and talks about it
            count = self._library._threadpool_get_thread_count()
        return int(count)

    def set_threads(self, count: int) -> None:
        """Make the process's pool anew. Nothing may be running."""
        with quiet():
            self._library._unsafe_reset_threadpool(count)

    def open(self, file: Path) -> tuple[Any, Any]:
        """A program and its method ``forward``, ready to run; the program lives as long as it is kept."""
        with quiet():
            program = self._library._load_program(
                str(file), program_verification=self._library.Verification.InternalConsistency
            )
            return program, program.load_method("forward")

    def tensors(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        """Torch tensors over the memory of ``arrays``."""
        return [self._torch.from_numpy(array) for array in arrays]

    def call(self, method: Any, tensors: Sequence[Any]) -> list[np.ndarray]:
        """Run the method; the arrays lie in its own memory until the next call."""
        method.set_inputs(tensors)
        method.execute()
        return [tensor.numpy() for tensor in method.get_outputs(clone_outputs=False)]


# ExecuTorch's numbers of element types (runtime/core/portable_type/scalar_type.h).
KINDS = {1: "int8", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 11: "bool"}


def described(meta: Any, side: str) -> list[tuple[str, tuple[int, ...]]]:
    """Element type and shape of every ``input`` or ``output`` of a method, in order; free axes at their largest."""
    count: Callable[[], int] = getattr(meta, f"num_{side}s")
    one: Callable[[int], Any] = getattr(meta, f"{side}_tensor_meta")
    infos = [one(index) for index in range(count())]
    return [(KINDS.get(info.dtype(), str(info.dtype())), tuple(info.sizes())) for info in infos]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the lines that the bindings write to stderr themselves while they load."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
