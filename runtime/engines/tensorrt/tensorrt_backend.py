"""An engine of TensorRT, or of TensorRT for RTX, as a backend. Calls are made one at a time.

There is one execution context and one CUDA stream. States of streams stay on the device (``cuda_pool``); ``run`` and
``bind`` are for everything else. TensorRT for RTX has the same Python API. Its engines are bound to its exact version
and to the compute capabilities that they were built for; the kernels of the GPU at hand are made when one is loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
from reuse_distill.runtime.bundle_format.bundle import Bundle
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.bundle_format.stepspec import StepSpec
from reuse_distill.runtime.engines.backend import Port
from reuse_distill.runtime.engines.tensorrt.cuda_pool import CudaStatePool
from reuse_distill.runtime.engines.tensorrt.cuda_runtime import TO_DEVICE, TO_HOST, Cuda
from reuse_distill.runtime.engines.tensorrt.tensorrt_features import FINISH_COMMAND, detect, identify, load_tensorrt
from reuse_distill.runtime.errors import RdError, install_hint


class TensorrtBackend:
    """A loaded engine. Raises RdError where it was built for another TensorRT, another GPU, or does not load.

    ``load`` gives the vendor's module, ``check`` raises where the engine is bound to another machine.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        load: Callable[[], Any] = load_tensorrt,
        check: Callable[[Bundle, Any, Cuda], None] | None = None,
        provider: str = "tensorrt",
    ) -> None:
        trt, self.cuda = load(), Cuda.open()
        (check or check_same_device)(bundle, trt, self.cuda)
        self.artifact, self.lock = bundle.artifact, threading.RLock()
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)  # kept: the engine needs it as long as it lives
        self._engine = self._runtime.deserialize_cuda_engine(bundle.artifact.read_bytes())
        if self._engine is None:
            raise RdError(
                f"{bundle.artifact}: TensorRT {trt.__version__} cannot load it",
                hint=f"build it again: {FINISH_COMMAND.format(path=bundle.path)}",
            )
        self.context = self._engine.create_execution_context()
        self.stream = self.cuda.stream()
        self.provider, self.placement = provider, None
        self.versions: Mapping[str, str] = {provider.replace("-", "_"): str(trt.__version__), "numpy": np.__version__}
        self.inputs, self.outputs = _ports(trt, self._engine, bundle.manifest)
        self._memory: dict[str, tuple[int, int]] = {}  # name -> (address, bytes)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See ``Backend.run``."""
        with self.lock:
            arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
            for name, array in arrays.items():
                self._set_shape(name, array.shape)
            outputs = {
                name: np.empty(tuple(self.context.get_tensor_shape(name)), port.dtype)
                for name, port in self.outputs.items()
            }
            for name, array in (*arrays.items(), *outputs.items()):
                self.context.set_tensor_address(name, self._room(name, array.nbytes))
            self._transfer_and_execute(arrays, outputs)
            return outputs

    def bind(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """See ``Backend.bind``; copies all inputs in and all outputs out at every call."""
        kept_in, kept_out = dict(inputs), dict(outputs)

        def run() -> None:
            results = self.run(kept_in)
            for name, array in kept_out.items():
                array[...] = results[name]

        return run

    def state_pool(self, spec: StepSpec, rows: int) -> CudaStatePool:
        """States of ``rows`` streams in device memory."""
        return CudaStatePool(spec, self, rows)

    def execute(self) -> None:
        """Put one run on the stream, at the addresses that are set. Raises RdError where TensorRT refuses."""
        if not self.context.execute_async_v3(self.stream):
            raise RdError(f"{self.artifact}: TensorRT failed while running it", hint="out of memory? run fewer streams")

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if not self.context.set_input_shape(name, shape):
            least, _, most = self._engine.get_tensor_profile_shape(name, 0)
            raise RdError(
                f"{name} of shape {shape}: the engine was built for {tuple(least)} to {tuple(most)}",
                hint="use a stream (rd-stream), or export with a longer --max-seconds",
            )

    def _room(self, name: str, size_bytes: int) -> int:
        address, size = self._memory.get(name, (0, 0))
        if size < size_bytes:
            if address:
                self.cuda.free(address)
            address = self.cuda.allocate(size_bytes)
            self._memory[name] = (address, size_bytes)
        return address

    def _transfer_and_execute(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        for name, array in inputs.items():
            self.cuda.copy(self._memory[name][0], array.ctypes.data, array.nbytes, TO_DEVICE, self.stream)
        self.execute()
        for name, array in outputs.items():
            self.cuda.copy(array.ctypes.data, self._memory[name][0], array.nbytes, TO_HOST, self.stream)
        self.cuda.wait(self.stream)


def check_same_device(bundle: Bundle, trt: Any, cuda: Cuda) -> None:
    """See ``check_bound``."""
    check_bound(bundle, identify(detect(trt), cuda))


def check_bound(bundle: Bundle, here: Mapping[str, Any]) -> None:
    """Raise RdError unless the engine was built by this TensorRT on this kind of GPU."""
    built_for = bundle.manifest.device or {}
    for key, actual in here.items():
        if built_for.get(key) != actual:
            raise RdError(
                f"{bundle.path}: the engine was built for {key} {built_for.get(key, 'unknown')}, "
                f"this machine has {actual}",
                hint=f"build it for this machine: {FINISH_COMMAND.format(path=bundle.path)}",
            )


def _ports(trt: Any, engine: Any, manifest: Manifest) -> tuple[dict[str, Port], dict[str, Port]]:
    """The engine's tensors; free axes get the manifest's names."""
    named = {t.name: t.shape for t in (*manifest.inputs, *manifest.outputs)}
    inputs: dict[str, Port] = {}
    outputs: dict[str, Port] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        stated = named.get(name, ())
        sizes = tuple(engine.get_tensor_shape(name))
        shape = tuple(stated[i] if d < 0 and i < len(stated) else int(d) for i, d in enumerate(sizes))
        port = Port(name, np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name, shape)
        side = inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs
        side[name] = port
    return inputs, outputs


TARGET = "tensorrt-rtx"
INSTALL = install_hint("tensorrt-rtx")
# Fields of manifest.device.
VERSION, CAPABILITIES = "tensorrt_rtx", "compute_capabilities"


def load_tensorrt_rtx() -> Any:
    """The vendor's module. Raises RdError where it is not installed or its libraries do not load."""
    try:
        import_module("tensorrt_rtx_libs")  # first: the bindings find the libraries that it loads
        return import_module("tensorrt_rtx_bindings")
    except (ImportError, OSError) as error:
        raise RdError(f"TensorRT for RTX cannot be imported: {error}", hint=INSTALL) from None


def open_rtx(bundle: Bundle) -> TensorrtBackend:
    """The engine of ``bundle`` on this machine's GPU.

    Raises RdError where TensorRT for RTX or a GPU is missing, or the engine is bound to others.
    """
    return TensorrtBackend(bundle, load=load_tensorrt_rtx, check=check_rtx, provider=TARGET)


def check_rtx(bundle: Bundle, trt: Any, cuda: Cuda) -> None:
    """Raise RdError unless the engine was built by this version and for this GPU's compute capability."""
    device = bundle.manifest.device or {}
    again = f"export the bundle again with TensorRT for RTX {trt.__version__}"
    if device.get(VERSION) != str(trt.__version__):
        raise RdError(
            f"{bundle.path}: the engine was built by TensorRT for RTX {device.get(VERSION, 'unknown')}, "
            f"this machine has {trt.__version__}",
            hint=again,
        )
    here, built = cuda.compute_capability(), list(device.get(CAPABILITIES, []))
    if here not in built:
        raise RdError(
            f"{bundle.path}: the engine was built for compute capability {', '.join(built) or 'unknown'}, "
            f"this GPU ({cuda.device_name()}) has {here}",
            hint="export the bundle again with --gpu all, or with the name of this GPU",
        )
