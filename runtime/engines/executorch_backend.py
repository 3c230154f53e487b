"""An ExecuTorch program as a backend. A program has one working memory: calls are made one at a time.

The bindings of ExecuTorch's Python runtime import torch and take torch tensors, so this one module of the runtime does
too, when a program is opened and never before. The tensors are views of NumPy arrays: nothing is converted. On a device
the C++ runtime needs none of this.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.runtime.bundle_format.bundle import Bundle
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.engines.backend import Port
from reuse_distill.runtime.engines.denormals import flushed
from reuse_distill.runtime.errors import RdError, install_hint
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ

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


TARGET = "executorch"
BACKENDS = {"xnnpack": "XnnpackBackend", "coreml": "CoreMLBackend", "qualcomm": "QnnBackend"}
DELEGATE = "delegate"  # of manifest.device
LONGEST = "longest_samples"
PLACEMENT = "placement"
_OPEN: weakref.WeakSet[ExecutorchBackend] = weakref.WeakSet()
_POOL = threading.Lock()


class ExecutorchBackend:
    """A loaded program. Raises RdError where its delegate or the requested threads are missing, or it is damaged."""

    def __init__(self, bundle: Bundle, *, threads: int) -> None:
        manifest, self.artifact = bundle.manifest, bundle.artifact
        self.provider = delegate_of(manifest)
        self._bridge, self._lock = Bridge(), threading.Lock()
        check_delegate(self.provider, self._bridge.delegates)
        self._input_names = [t.name for t in manifest.inputs] + [s.input for s in manifest.states]
        self._output_names = [t.name for t in manifest.outputs] + [s.output for s in manifest.states]
        self._longest: int | None = (manifest.device or {}).get(LONGEST)
        self.versions: Mapping[str, str] = self._bridge.versions
        self.placement: Mapping[str, int] | None = (manifest.device or {}).get(PLACEMENT)  # as read off the program
        with _POOL:
            set_threads(self._bridge, threads)
            self._program, self._method = self._open()
            _OPEN.add(self)
        meta = self._method.method_meta()
        self.inputs = self._ports("inputs", described(meta, "input"), manifest)
        self.outputs = self._ports("outputs", described(meta, "output"), manifest)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See ``Backend.run``."""
        arrays = [np.ascontiguousarray(inputs[name]) for name in self._input_names]
        self._check_length(arrays[0])
        tensors = self._bridge.tensors(arrays)
        with self._lock:
            results = self._call(tensors)
            return {name: array.copy() for name, array in zip(self._output_names, results, strict=True)}

    def bind(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """See ``Backend.bind``. The program reads the inputs where they lie; its outputs are copied out."""
        tensors = self._bridge.tensors([inputs[name] for name in self._input_names])
        targets = [outputs[name] for name in self._output_names]

        # The tensors know the arrays' memory only: the default argument keeps the arrays as long as the call.
        def run(_kept: object = dict(inputs)) -> None:
            with self._lock:
                for target, array in zip(targets, self._call(tensors), strict=True):
                    np.copyto(target, array)

        return run

    def _open(self) -> tuple[Any, Any]:
        try:
            return self._bridge.open(self.artifact)
        except RuntimeError as error:
            raise RdError(
                f"{self.artifact}: ExecuTorch {self.versions['executorch']} cannot load it: {error}",
                hint="export the bundle again with the version that is installed here",
            ) from error

    def _call(self, tensors: list[Any]) -> list[np.ndarray]:
        try:
            return flushed(lambda: self._bridge.call(self._method, tensors))
        except RuntimeError as error:
            raise RdError(
                f"{self.artifact}: ExecuTorch failed while running it: {error}", hint="out of memory? stream in chunks"
            ) from error

    def _check_length(self, first: np.ndarray) -> None:
        if self._longest is not None and first.shape[-1] > self._longest:
            raise RdError(
                f"{first.shape[-1] / SAMPLE_RATE_HZ:.1f} s at once: {self.artifact.name} was exported for up to "
                f"{self._longest / SAMPLE_RATE_HZ:.1f} s",
                hint="use a stream (rd-stream), or export with a longer --max-seconds",
            )

    def _ports(self, side: str, tensors: list[tuple[str, tuple[int, ...]]], manifest: Manifest) -> dict[str, Port]:
        """The program's tensors under the manifest's names, by order: the program keeps no names."""
        names = self._input_names if side == "inputs" else self._output_names
        if len(tensors) != len(names):
            raise RdError(
                f"{self.artifact}: {len(tensors)} {side}, the manifest names {len(names)}",
                hint="export the bundle again",
            )
        stated = {t.name: t.shape for t in (*manifest.inputs, *manifest.outputs)}
        ports = {}
        for name, (kind, sizes) in zip(names, tensors, strict=True):
            shape = tuple(s if isinstance(s, str) else n for s, n in zip(stated.get(name, sizes), sizes, strict=True))
            ports[name] = Port(name, kind, shape)
        return ports


def delegate_of(manifest: Manifest) -> str:
    """The delegate that a program was exported for."""
    return str((manifest.device or {}).get(DELEGATE, "xnnpack"))


def check_provider(bundle: Bundle, provider: str) -> None:
    """Raise RdError unless ``provider`` is the delegate that the program was exported for."""
    delegate = delegate_of(bundle.manifest)
    if provider not in ("auto", delegate):
        raise RdError(
            f"{bundle.path}: this program runs on provider {delegate!r} only, {provider!r} was requested",
            hint="leave the provider out, or export with --target onnx",
        )


def check_delegate(delegate: str, available: list[str]) -> None:
    """Raise RdError where the installed ExecuTorch was built without ``delegate``."""
    if BACKENDS.get(delegate) in available:
        return
    if delegate == "coreml":
        raise RdError(
            "this program was exported for Core ML's delegate, which ExecuTorch has on Apple's devices only",
            hint="run it on an iPhone, iPad or Mac, or export with --delegate xnnpack",
        )
    raise RdError(
        f"the installed ExecuTorch has no delegate {delegate!r}; it has {', '.join(sorted(available)) or 'none'}",
        hint="run it on its device, or export with --delegate xnnpack",
    )


def set_threads(bridge: Bridge, threads: int) -> None:
    """Give the process's thread pool ``threads`` threads; raises RdError where open programs use another number."""
    if bridge.threads == threads:
        return
    if len(_OPEN):
        raise RdError(
            f"threads={threads}: ExecuTorch has one thread pool for the process, and an open program uses "
            f"{bridge.threads}",
            hint="open all ExecuTorch bundles with the same number of threads",
        )
    bridge.set_threads(threads)
