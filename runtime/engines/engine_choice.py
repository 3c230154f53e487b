"""Which engine serves which target: refuses what cannot run here, opens the artifact, compares it with the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from reuse_distill.runtime.bundle_format.bundle import Bundle
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.bundle_format.stepspec import CHUNK_AXIS
from reuse_distill.runtime.engines.backend import Backend
from reuse_distill.runtime.engines.external_data import check_self_contained
from reuse_distill.runtime.engines.providers import AUTO, check_provider
from reuse_distill.runtime.errors import RdError

RUNNABLE_TARGETS = ("onnx", "ort", "openvino", "tensorrt", "tensorrt-rtx", "executorch", "litert")


def check_runnable(bundle: Bundle, provider: str) -> None:
    """Raise RdError where the bundle is not finished, its target is not ours to run, or the provider is not there."""
    manifest = bundle.manifest
    if manifest.status == "deferred":
        raise RdError(
            f"{bundle.path}: deferred: {manifest.target} could not be finished on the machine that exported it",
            hint=f"finish it on the device: rd-export finish {bundle.path}",
        )
    if manifest.target not in RUNNABLE_TARGETS:
        raise RdError(
            f"{bundle.path}: target {manifest.target!r}; this runtime runs {', '.join(RUNNABLE_TARGETS)}",
            hint="use the vendor's runtime for this artifact, or export with --target onnx",
        )
    if manifest.target in ("tensorrt", "tensorrt-rtx"):
        if provider not in (AUTO, manifest.target):
            raise RdError(
                f"{bundle.path}: an engine runs on provider {manifest.target!r} only, {provider!r} was requested",
                hint="leave the provider out, or export with --target onnx",
            )
        return
    if manifest.target == "openvino":
        from reuse_distill.runtime.engines.openvino.openvino_device import check_provider as check_openvino_provider

        check_openvino_provider(provider, bundle.path)
        return
    if manifest.target == "executorch":
        from reuse_distill.runtime.engines.executorch_backend import check_provider as check_delegate

        check_delegate(bundle, provider)
        return
    if manifest.target == "litert":
        from reuse_distill.runtime.engines.litert_backend import check_litert_provider

        check_litert_provider(provider, bundle.path)
        return
    import onnxruntime

    check_provider(provider, onnxruntime.get_available_providers())


def open_backend(bundle: Bundle, *, provider: str, threads: int, options: Mapping[str, str] | None = None) -> Backend:
    """Load the artifact of a verified bundle. Raises RdError where this machine cannot run it as asked.

    ``options`` go to ONNX Runtime's provider, over the defaults of ``runtime.engines.providers``, or to OpenVINO.
    """
    backend: Backend
    if options and bundle.manifest.target not in ("onnx", "ort", "openvino"):
        raise RdError(
            f"{bundle.path}: provider options are for ONNX Runtime and OpenVINO, it is {bundle.manifest.target}"
        )
    if bundle.manifest.target == "tensorrt-rtx":
        from reuse_distill.runtime.engines.tensorrt.tensorrt_backend import open_rtx

        backend = open_rtx(bundle)
        check_ports(bundle, backend)
        return backend
    if bundle.manifest.target == "openvino":
        from reuse_distill.runtime.engines.openvino.openvino_backend import OpenvinoBackend

        backend = OpenvinoBackend(bundle, provider=provider, threads=threads, options=options)
        check_ports(bundle, backend)
        return backend
    if bundle.manifest.target == "tensorrt":
        from reuse_distill.runtime.engines.tensorrt.tensorrt_backend import TensorrtBackend

        backend = TensorrtBackend(bundle)
        check_ports(bundle, backend)
        return backend
    if bundle.manifest.target == "executorch":
        from reuse_distill.runtime.engines.executorch_backend import ExecutorchBackend

        backend = ExecutorchBackend(bundle, threads=threads)
        check_ports(bundle, backend)
        return backend
    if bundle.manifest.target == "litert":
        from reuse_distill.runtime.engines.litert_backend import LitertBackend

        backend = LitertBackend(bundle, threads=threads)
        check_ports(bundle, backend)
        return backend
    from reuse_distill.runtime.engines.ort_backend import OrtBackend

    if bundle.artifact.suffix != ".ort":  # what ONNX Runtime goes by; its own format names no other files
        check_self_contained(bundle.artifact, _beside_artifact(bundle.manifest))
    backend = OrtBackend(
        bundle.artifact, provider=provider, threads=threads, precision=bundle.manifest.precision, options=options
    )
    check_ports(bundle, backend)
    return backend


def _beside_artifact(manifest: Manifest) -> set[str]:
    """The verified files by their names relative to the folder of the artifact."""
    folder = PurePosixPath(manifest.artifact).parent
    files = map(PurePosixPath, manifest.files)
    return {file.relative_to(folder).as_posix() for file in files if file.is_relative_to(folder)}


def check_ports(bundle: Bundle, backend: Backend) -> None:
    """Raise RdError where the artifact's inputs and outputs are not those that the manifest declares.

    Names, types, and every axis that both sides fix; buffers are allocated by the manifest's shapes afterwards.
    """
    for what, declared, ports in (
        ("input", _declared_inputs(bundle.manifest), backend.inputs),
        ("output", _declared_outputs(bundle.manifest), backend.outputs),
    ):
        if set(declared) != set(ports):
            raise RdError(
                f"{bundle.artifact}: {what}s {', '.join(sorted(ports))}; the manifest says "
                f"{', '.join(sorted(declared))}",
                hint="export the bundle again",
            )
        for name, (dtype, shape) in declared.items():
            port = ports[name]
            if port.dtype != dtype:
                raise RdError(f"{bundle.artifact}: {what} {name} is {port.dtype}, the manifest says {dtype}")
            if not _agree(port.shape, shape):
                raise RdError(
                    f"{bundle.artifact}: {what} {name} has shape {list(port.shape)}, the manifest says {list(shape)}",
                    hint="export the bundle again",
                )


Declared = dict[str, tuple[str, tuple["int | str", ...]]]


def _declared_inputs(manifest: Manifest) -> Declared:
    inputs: Declared = {t.name: (t.dtype, t.shape) for t in manifest.inputs}
    return inputs | {s.input: (s.dtype, s.shape) for s in manifest.states}


def _declared_outputs(manifest: Manifest) -> Declared:
    """Outputs of states that are appended to have as many rows as a step has frames."""
    outputs: Declared = {t.name: (t.dtype, t.shape) for t in manifest.outputs}
    for state in manifest.states:
        shape = list(state.shape)
        if state.update == "append":
            shape[state.axis] = CHUNK_AXIS if manifest.chunk_choices else manifest.geometry.chunk_frames
        outputs[state.output] = (state.dtype, tuple(shape))
    return outputs


def _agree(port: tuple[int | str, ...], declared: tuple[int | str, ...]) -> bool:
    """Whether two shapes may be the same; an engine that does not tell a shape tells no axis."""
    if not port:
        return True
    return len(port) == len(declared) and all(
        not isinstance(a, int) or not isinstance(b, int) or a < 1 or a == b for a, b in zip(port, declared, strict=True)
    )
