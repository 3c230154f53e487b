"""ONNX Runtime as a backend: one session per encoder, buffers bound by the streams that own them.

On a GPU the states of a stream stay in its memory (``resident_pool``) where the step returns whole states; elsewhere
they are host memory, which ONNX Runtime copies for providers with a memory of their own.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.runtime.bundle_format.stepspec import StepSpec
from reuse_distill.runtime.engines.backend import Port
from reuse_distill.runtime.engines.denormals import flushed
from reuse_distill.runtime.engines.providers import (
    MEMORY,
    NAMES,
    candidates,
    check_provider,
    check_runs,
    count,
    provider_options,
    read_nodes,
    session_providers,
)
from reuse_distill.runtime.engines.resident_pool import ResidentStatePool
from reuse_distill.runtime.engines.tensorrt.cuda_runtime import DEFAULT_STREAM, TO_DEVICE, Cuda
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.streaming.state_pool import StatePool
from reuse_distill.runtime.streaming.whole_states import appended_states

# ONNX Runtime's element types by NumPy's names.
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class OrtBackend:
    """A session on one provider. Raises RdError where the file is damaged or the provider does not run."""

    def __init__(
        self,
        artifact: Path,
        *,
        provider: str,
        threads: int,
        precision: str = "fp32",
        options: Mapping[str, str] | None = None,
    ) -> None:
        import onnxruntime

        available = onnxruntime.get_available_providers()
        check_provider(provider, available)
        self.artifact = artifact
        self.versions: Mapping[str, str] = {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
        names = candidates(provider, available)
        for name in names:
            try:
                settings = provider_options(name, precision=precision, threads=threads, given=options)
                self._session = _open_session(artifact, session_providers(name, available), settings, threads)
                nodes = read_nodes(self._session)
                check_runs(name, self._session, count(nodes))
            except RdError:
                if name == names[-1]:  # `auto` tries the next one
                    raise
                continue
            self.provider, self.nodes, self.placement = name, nodes, count(nodes)
            break
        self.memory = MEMORY.get(self.provider, "cpu")
        self._cuda: Cuda | None = None
        self.inputs = _ports(self._session.get_inputs())
        self.outputs = _ports(self._session.get_outputs())
        self._output_names = list(self.outputs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See ``Backend.run``."""
        try:
            results = flushed(lambda: self._session.run(self._output_names, dict(inputs)))
        except Exception as error:  # ONNX Runtime's errors have no common base of their own
            raise _run_failed(self.artifact, error) from error
        return dict(zip(self._output_names, results, strict=True))

    def bind(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """See ``Backend.bind``."""
        session, binding = self._session, self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, _address(array))
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, _address(array))

        # The binding knows addresses only: the default argument keeps the arrays alive as long as the call.
        def run(_kept: object = (dict(inputs), dict(outputs))) -> None:
            try:
                flushed(lambda: session.run_with_iobinding(binding))
            except Exception as error:
                raise _run_failed(self.artifact, error) from error

        return run

    def state_pool(self, spec: StepSpec, rows: int) -> StatePool:
        """Room for ``rows`` streams: in the provider's memory where it has one and the states may stay there."""
        resident = self.memory != "cpu" and not appended_states(spec)
        return ResidentStatePool(spec, self, rows) if resident else StatePool(spec, self, rows)

    def allocate(self, array: np.ndarray) -> Any:
        """See ``ResidentBackend.allocate``."""
        import onnxruntime

        # Not `ortvalue_from_numpy`: on the CPU that is the array's own memory.
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, self.memory, 0)
        value.update_inplace(array)
        return value

    def write_row(self, value: Any, row: int, array: np.ndarray) -> None:
        """See ``ResidentBackend.write_row``."""
        cuda = self._cuda_copies()
        if self.memory != "cpu" and cuda is None:
            whole = np.array(value.numpy())
            whole[row] = array
            value.update_inplace(whole)
            return
        address = value.data_ptr() + row * array.nbytes
        if cuda is None:
            ctypes.memmove(address, array.ctypes.data, array.nbytes)
        else:
            cuda.copy(address, array.ctypes.data, array.nbytes, TO_DEVICE, DEFAULT_STREAM)
            cuda.wait(DEFAULT_STREAM)

    def read_row(self, value: Any, row: int) -> np.ndarray:
        """See ``ResidentBackend.read_row``."""
        return np.array(value.numpy()[row])

    def _cuda_copies(self) -> Cuda | None:
        """CUDA's own copies, for single rows; None on the CPU and where its library cannot be loaded."""
        if self._cuda is None and self.memory == "cuda":
            try:
                self._cuda = Cuda.open()
            except RdError:
                return None
        return self._cuda if self.memory == "cuda" else None

    def bind_resident(
        self,
        host: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],
        device: tuple[dict[str, Any], dict[str, Any]],
        rows: slice,
    ) -> Callable[[], None]:
        """See ``ResidentBackend.bind_resident``."""
        session, binding = self._session, self._session.io_binding()
        for bind, arrays in zip((binding.bind_input, binding.bind_output), host, strict=True):
            for name, array in arrays.items():
                bind(name, "cpu", 0, array.dtype, array.shape, _address(array))
        for bind, ports, values in zip(
            (binding.bind_input, binding.bind_output), (self.inputs, self.outputs), device, strict=True
        ):
            for name, value in values.items():
                shape, dtype = value.shape(), np.dtype(ports[name].dtype)
                row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
                address = value.data_ptr() + rows.start * row_bytes
                bind(name, self.memory, 0, dtype, [rows.stop - rows.start, *shape[1:]], address)

        # The binding knows addresses only: the default argument keeps what they belong to alive as long as the call.
        def run(_kept: object = (host, device)) -> None:
            try:
                binding.synchronize_inputs()
                flushed(lambda: session.run_with_iobinding(binding))
                binding.synchronize_outputs()
            except Exception as error:
                raise _run_failed(self.artifact, error) from error

        return run


def session_options(threads: int) -> Any:
    """``threads`` in all, no spinning, denormals flushed to zero on the engine's own threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # One planned block per input length would be kept for every length ever seen, and is larger than what a run needs.
    options.enable_mem_pattern = False
    options.log_severity_level = 3  # errors; warnings about placement are checked, not read
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _open_session(artifact: Path, providers: list[str], settings: Mapping[str, str], threads: int) -> Any:
    import onnxruntime

    options = [dict(settings), *({} for _ in providers[1:])]
    try:
        session = flushed(
            lambda: onnxruntime.InferenceSession(
                str(artifact), session_options(threads), providers=providers, provider_options=options
            )
        )
    except Exception as error:
        hint = "export the bundle again with a version that this ONNX Runtime reads"
        if settings:
            listed = ", ".join(f"{key}={value}" for key, value in settings.items())
            hint += f"; provider {NAMES[providers[0]]} got {listed}"
        raise RdError(
            f"{artifact}: ONNX Runtime {onnxruntime.__version__} cannot load it: {error}", hint=hint
        ) from error
    give_back_memory()
    return session


def give_back_memory() -> None:
    """Return what loading took and freed: 13 to 22 MB of 110 to 170 for a 22 M student, with glibc."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is not None and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _run_failed(artifact: Path, error: Exception) -> RdError:
    return RdError(f"{artifact}: ONNX Runtime failed while running it: {error}", hint="out of memory? stream in chunks")


def _address(array: np.ndarray) -> int:
    if not array.flags.c_contiguous:
        raise ValueError("a bound buffer must be C-contiguous")
    return int(array.ctypes.data)


def _ports(nodes: Any) -> dict[str, Port]:
    return {
        node.name: Port(
            node.name,
            DTYPES.get(node.type, node.type),
            tuple(d if isinstance(d, int) else str(d) for d in node.shape),
        )
        for node in nodes
    }
