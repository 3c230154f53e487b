"""Engine and execution context: the ONNX file by ONNX Runtime, at the addresses that are bound."""

from __future__ import annotations

import ctypes
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from .inspector import Inspector
from .surface import Guarded

if TYPE_CHECKING:
    from .module import RecordedTensorrt

NUMPY = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


class Runtime(Guarded):
    def __init__(self, trt: RecordedTensorrt) -> None:
        super().__init__(trt, "Runtime")

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        size = int.from_bytes(data[:4], "little")
        return Engine(self._trt, json.loads(data[4 : 4 + size]), onnx.load_from_string(data[4 + size :]))


class Engine(Guarded):
    def __init__(self, trt: RecordedTensorrt, head: dict[str, Any], model: Any) -> None:
        super().__init__(trt, "ICudaEngine")
        for key, value in (
            ("_head", head),
            ("_model", model),
            ("_io", [*model.graph.input, *model.graph.output]),
        ):
            object.__setattr__(self, key, value)

    @property
    def num_io_tensors(self) -> int:
        return len(self._io)

    def _value(self, name: str) -> Any:
        return next(v for v in self._io if v.name == name)

    def get_tensor_name(self, index: int) -> str:
        return str(self._io[index].name)

    def get_tensor_mode(self, name: str) -> Any:
        mode = self._trt.TensorIOMode
        return mode.INPUT if any(v.name == name for v in self._model.graph.input) else mode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d.dim_value or -1 for d in self._value(name).type.tensor_type.shape.dim)

    def get_tensor_dtype(self, name: str) -> Any:
        return NUMPY[self._value(name).type.tensor_type.elem_type]

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        return self._head["shapes"][name]

    def create_engine_inspector(self) -> Any:
        return Inspector(self._trt, self._head, self._model)

    def create_execution_context(self) -> Any:
        return Context(self._trt, self)


class Context(Guarded):
    def __init__(self, trt: RecordedTensorrt, engine: Any) -> None:
        super().__init__(trt, "IExecutionContext")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(
            engine._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        shapes = {v.name: engine.get_tensor_shape(v.name) for v in engine._model.graph.input}
        for key, value in (
            ("_engine", engine),
            ("_session", session),
            ("_shapes", shapes),
            ("_addresses", {}),
        ):
            object.__setattr__(self, key, value)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        limits = self._engine._head["shapes"].get(name)
        if limits is None:
            return tuple(shape) == self._engine.get_tensor_shape(name)
        inside = all(low <= size <= high for low, size, high in zip(limits[0], shape, limits[2], strict=True))
        if inside:
            self._shapes[name] = tuple(shape)
        return inside

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = self._engine.get_tensor_shape(name)
        frames = (self._shapes["wave"][1] - 400) // 320 + 1 if "wave" in self._shapes else 0
        return tuple(frames if size < 0 else size for size in sizes)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0, f"{name}: address {address} is not aligned"
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream != 0, "the default stream cannot be captured"
        addresses, shapes = dict(self._addresses), dict(self._shapes)
        outputs = {v.name: self.get_tensor_shape(v.name) for v in self._engine._model.graph.output}
        assert set(addresses) == {*shapes, *outputs}
        self._trt._cudart.submit(lambda: self._compute(addresses, shapes, outputs))
        return True

    def _compute(self, addresses: dict[str, int], shapes: dict[str, Any], outputs: dict[str, Any]) -> None:
        feeds = {name: self._array(name, addresses[name], shape).copy() for name, shape in shapes.items()}
        for (name, shape), found in zip(outputs.items(), self._session.run(list(outputs), feeds), strict=True):
            wrong = 1.5 if self._trt._sabotage.wrong_numbers else 1
            self._array(name, addresses[name], shape)[...] = found * np.asarray(wrong, found.dtype)

    def _array(self, name: str, address: int, shape: tuple[int, ...]) -> np.ndarray:
        kind = np.dtype(self._engine.get_tensor_dtype(name))
        size = int(np.prod(shape)) * kind.itemsize
        return np.frombuffer((ctypes.c_ubyte * size).from_address(address), kind).reshape(shape)
