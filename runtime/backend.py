"""What runs an artifact: the Protocol that the rest of the runtime knows, and which engine serves which target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from reuse_distill.runtime.bundle import Bundle
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.providers import AUTO, check_provider

RUNNABLE_TARGETS = ("onnx", "ort", "openvino", "tensorrt", "executorch")


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


def check_runnable(bundle: Bundle, provider: str) -> None:
    """Raise RdError where the bundle is not finished, its target is not ours to run, or the provider is not there."""
    manifest = bundle.manifest
    if manifest.status == "deferred":
        command = manifest.source.get("finish") or (manifest.device or {}).get("finish")
        raise RdError(
            f"{bundle.path}: deferred: {manifest.target} could not be finished on the machine that exported it",
            hint=f"finish it on the device: {command or f'rd-export --finish {bundle.path}'}",
        )
    if manifest.target not in RUNNABLE_TARGETS:
        raise RdError(
            f"{bundle.path}: target {manifest.target!r}; this runtime runs {', '.join(RUNNABLE_TARGETS)}",
            hint="use the vendor's runtime for this artifact, or export with --target onnx",
        )
    if manifest.target == "tensorrt":
        if provider not in (AUTO, "tensorrt"):
            raise RdError(
                f"{bundle.path}: an engine runs on provider 'tensorrt' only, {provider!r} was asked for",
                hint="leave the provider out, or export with --target onnx",
            )
        return
    if manifest.target == "openvino":
        from reuse_distill.runtime.openvino.openvino_device import check_provider as check_openvino_provider

        check_openvino_provider(provider, bundle.path)
        return
    if manifest.target == "executorch":
        from reuse_distill.runtime.et.backend import check_provider as check_delegate

        check_delegate(bundle, provider)
        return
    import onnxruntime

    check_provider(provider, onnxruntime.get_available_providers())


def open_backend(bundle: Bundle, *, provider: str, threads: int, options: Mapping[str, str] | None = None) -> Backend:
    """Load the artifact of a verified bundle. Raises RdError where this machine cannot run it as asked.

    ``options`` go to ONNX Runtime's provider, over the defaults of ``runtime.provider_options``, or to OpenVINO.
    """
    backend: Backend
    if options and bundle.manifest.target not in ("onnx", "ort", "openvino"):
        raise RdError(
            f"{bundle.path}: provider options are for ONNX Runtime and OpenVINO, it is {bundle.manifest.target}"
        )
    if bundle.manifest.target == "openvino":
        from reuse_distill.runtime.openvino.openvino_backend import OpenvinoBackend

        backend = OpenvinoBackend(bundle, provider=provider, threads=threads, options=options)
        check_ports(bundle, backend)
        return backend
    if bundle.manifest.target == "tensorrt":
        from reuse_distill.runtime.trt.backend import TensorrtBackend

        backend = TensorrtBackend(bundle)
        check_ports(bundle, backend)
        return backend
    if bundle.manifest.target == "executorch":
        from reuse_distill.runtime.et.backend import EtBackend

        backend = EtBackend(bundle, threads=threads)
        check_ports(bundle, backend)
        return backend
    from reuse_distill.runtime.ort import OrtBackend

    backend = OrtBackend(
        bundle.artifact, provider=provider, threads=threads, precision=bundle.manifest.precision, options=options
    )
    check_ports(bundle, backend)
    return backend


def check_ports(bundle: Bundle, backend: Backend) -> None:
    """Raise RdError where the artifact's inputs and outputs are not those that the manifest declares."""
    manifest = bundle.manifest
    inputs = {t.name for t in manifest.inputs} | {s.input for s in manifest.states}
    outputs = {t.name for t in manifest.outputs} | {s.output for s in manifest.states}
    for what, said, found in (("inputs", inputs, backend.inputs), ("outputs", outputs, backend.outputs)):
        if said != set(found):
            raise RdError(
                f"{bundle.artifact}: {what} {', '.join(sorted(found))}; the manifest says {', '.join(sorted(said))}",
                hint="export the bundle again",
            )
    dtypes = {t.name: t.dtype for t in manifest.inputs} | {s.input: s.dtype for s in manifest.states}
    for name, dtype in dtypes.items():
        if backend.inputs[name].dtype != dtype:
            raise RdError(f"{bundle.artifact}: input {name} is {backend.inputs[name].dtype}, the manifest says {dtype}")
