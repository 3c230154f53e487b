"""An ExecuTorch program as a backend. A program has one working memory: calls are made one at a time."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from reuse_distill.runtime.bundle_format.bundle import Bundle
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.engines.backend import Port
from reuse_distill.runtime.engines.denormals import flushed
from reuse_distill.runtime.engines.torch_bridge import Bridge, described
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ

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
