"""A TensorRT that records and a CUDA that lives in main memory, so that everything but NVIDIA's own code is run.

The recorder has the names that the Python bindings of a release have (surfaces.json) and raises on any other, for
reading and for setting. What it builds is the ONNX file itself, run by ONNX Runtime at the addresses that it is given,
and its inspector answers in the documented layout of the release. It proves nothing of what a real builder does.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from runtime.trt.cuda import Cuda

SURFACES = json.loads((Path(__file__).parent / "surfaces.json").read_text())
ERAS = ("8.5", "8.6", "10.3", "10.13", "10.16", "11")
VERSIONS = {
    "8.5": "8.5.2.2",
    "8.6": "8.6.2.3",
    "10.3": "10.3.0.30",
    "10.13": "10.13.3",
    "10.16": "10.16.0",
    "11": "11.4.1",
}
OPSETS = {"8.5": 17, "8.6": 17}
UNREAD = {"8.5": {"Gelu", "LayerNormalization"}, "8.6": {"Gelu"}}
NUMPY = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}
TOLD = {
    np.dtype(np.float32): ("Float", "FP32"),
    np.dtype(np.float16): ("Half", "FP16"),
    np.dtype(np.int8): ("Int8", "INT8"),
}


class FakeCudart:
    """The CUDA calls that ``runtime.trt.cuda`` makes, in main memory; a captured stream runs when it is launched."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.capturing: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.calls: list[str] = []
        self.hosts = 0
        self.name, self.capability = b"Orin (recorded)", {75: 8, 76: 7}

        class ErrorString:
            restype: Any = None

            def __call__(self, status: int) -> bytes:
                return {900: b"operation not permitted when stream is capturing"}.get(status, b"invalid argument")

        self.cudaGetErrorString = ErrorString()

    def cudaGetDevice(self, out: Any) -> int:
        out._obj.value = 0
        return 0

    def cudaGetDeviceProperties(self, properties: Any, device: int) -> int:
        properties.value = self.name
        return 0

    def cudaDeviceGetAttribute(self, out: Any, attribute: int, device: int) -> int:
        out._obj.value = self.capability[attribute]
        return 0

    def cudaMalloc(self, out: Any, size: Any) -> int:
        if self.capturing is not None:
            return 900
        block = (ctypes.c_ubyte * (size.value + 256))()
        address = -(-ctypes.addressof(block) // 256) * 256
        self.memory[address] = block
        out._obj.value = address
        return 0

    def cudaHostAlloc(self, out: Any, size: Any, flags: int) -> int:
        self.hosts += 1
        return self.cudaMalloc(out, size)

    def cudaFree(self, address: Any) -> int:
        return 0 if self.memory.pop(address.value, None) is not None else 1

    def cudaMemset(self, address: Any, value: int, size: Any) -> int:
        ctypes.memset(address.value, value, size.value)
        return 0

    def cudaMemsetAsync(self, address: Any, value: int, size: Any, stream: Any) -> int:
        self.submit(lambda: ctypes.memset(address.value, value, size.value))
        return 0

    def cudaMemcpyAsync(self, target: Any, source: Any, size: Any, kind: int, stream: Any) -> int:
        self.calls.append(f"copy {kind}")
        self.submit(lambda: ctypes.memmove(target.value, source.value, size.value))
        return 0

    def cudaStreamCreateWithFlags(self, out: Any, flags: int) -> int:
        out._obj.value = 77
        return 0

    def cudaStreamSynchronize(self, stream: Any) -> int:
        return 900 if self.capturing is not None else 0

    def cudaStreamBeginCapture(self, stream: Any, mode: int) -> int:
        self.capturing = []
        return 0

    def cudaStreamEndCapture(self, stream: Any, out: Any) -> int:
        out._obj.value = len(self.graphs) + 1
        self.graphs[len(self.graphs) + 1], self.capturing = self.capturing or [], None
        return 0

    def cudaGraphInstantiateWithFlags(self, out: Any, graph: Any, flags: Any) -> int:
        out._obj.value = graph.value
        return 0

    def cudaGraphDestroy(self, graph: Any) -> int:
        return 0

    def cudaGraphExecDestroy(self, graph: Any) -> int:
        return 0 if self.graphs.pop(graph.value, None) is not None else 1

    def cudaGraphLaunch(self, graph: Any, stream: Any) -> int:
        self.calls.append("launch")
        for work in self.graphs[graph.value]:
            work()
        return 0

    def submit(self, work: Callable[[], Any]) -> None:
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)


class Guarded:
    """An object with the public names of one class of one release, and no others."""

    def __init__(self, trt: RecordedTensorrt, kind: str) -> None:
        object.__setattr__(self, "_trt", trt)
        object.__setattr__(self, "_kind", kind)

    def _check(self, name: str) -> None:
        kind, era = object.__getattribute__(self, "_kind"), object.__getattribute__(self, "_trt")._era
        if not name.startswith("_") and name not in SURFACES[era][kind]:
            raise AttributeError(f"TensorRT {era}: {kind} has no {name}")

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            object.__getattribute__(self, "_check")(name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._check(name)
        object.__setattr__(self, name, value)


@dataclass
class Sabotage:
    """What the recorded builder does wrong, or cannot do."""

    precision: str | None = None  # the engine runs everything at this precision
    names_only: bool = False
    fails: str = ""
    extra_node: str = ""
    recomputes: str = ""  # an ONNX node that another kernel computes again
    wrong_numbers: bool = False


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


class Builder(Guarded):
    def __init__(self, trt: RecordedTensorrt, logger: Any) -> None:
        super().__init__(trt, "Builder")
        object.__setattr__(self, "_logger", logger)

    def create_network(self, flags: int = 0) -> Any:
        return Network(self._trt, flags)

    def create_builder_config(self) -> Any:
        return Config(self._trt)

    def create_optimization_profile(self) -> Any:
        return ShapeProfile(self._trt)

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        trt, model = self._trt, network._model
        if trt._sabotage.fails:
            self._logger.log(trt.ILogger.ERROR, trt._sabotage.fails)
            return None
        precisions = {n for n in config._flags if n in ("FP16", "BF16", "INT8")}
        assert not (network._strong and precisions), "precision flags on a strongly typed network"
        free = [i.name for i in model.graph.input if any(not d.dim_value for d in i.type.tensor_type.shape.dim)]
        assert set(free) == set(config._shapes), f"profile of {set(config._shapes)} for free {free}"
        assert object.__getattribute__(config, "_limits"), "no workspace was set"
        trt._log.append(("build", network._strong, sorted(config._flags), sorted(config._cleared), config._cache))
        head = {"strong": network._strong, "flags": sorted(config._flags), "shapes": config._shapes}
        head["pinned"] = [layer._name for layer in network._layers if layer._pinned]
        head["verbosity"] = config._verbosity
        data = json.dumps(head).encode()
        return len(data).to_bytes(4, "little") + data + model.SerializeToString()


class Network(Guarded):
    def __init__(self, trt: RecordedTensorrt, flags: int) -> None:
        super().__init__(trt, "INetworkDefinition")
        names = SURFACES[trt._era]["NetworkDefinitionCreationFlag"]
        given = {name for i, name in enumerate(names) if flags >> i & 1}
        object.__setattr__(self, "_batch", "EXPLICIT_BATCH" in given)
        object.__setattr__(self, "_strong", "STRONGLY_TYPED" in given or trt._era == "11")
        object.__setattr__(self, "_model", None)
        object.__setattr__(self, "_layers", [])

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, index: int) -> Any:
        return self._layers[index]


class Layer(Guarded):
    def __init__(self, trt: RecordedTensorrt, name: str) -> None:
        super().__init__(trt, "ILayer")
        for key, value in (("_name", name), ("_pinned", False)):
            object.__setattr__(self, key, value)
        object.__setattr__(self, "name", f"(Unnamed Layer) {name}" if trt._era != "8.5" else name)
        if "metadata" in SURFACES[trt._era]["ILayer"]:
            object.__setattr__(self, "metadata", f"[ONNX Layer: {name}]")

    def get_output(self, index: int) -> Any:
        return Tensor(self._trt)

    def set_output_type(self, index: int, kind: Any) -> None:
        object.__setattr__(self, "_pinned", self.precision == self._trt.float32 == kind)


class Tensor(Guarded):
    def __init__(self, trt: RecordedTensorrt) -> None:
        super().__init__(trt, "ITensor")
        object.__setattr__(self, "dtype", trt.float32)


class Parser(Guarded):
    def __init__(self, trt: RecordedTensorrt, network: Any) -> None:
        super().__init__(trt, "OnnxParser")
        object.__setattr__(self, "_network", network)
        object.__setattr__(self, "_errors", [])

    def parse(self, data: bytes) -> bool:
        era, model = self._trt._era, onnx.load_from_string(data)
        if era.startswith("8") and not self._network._batch:
            self._errors.append("the ONNX parser only supports networks with an explicit batch dimension")
        if model.opset_import[0].version > OPSETS.get(era, 20):
            self._errors.append(f"opset {model.opset_import[0].version}")
        unread = {n.op_type for n in model.graph.node} & UNREAD.get(era, set())
        self._errors.extend(f"No importer registered for op: {op}" for op in sorted(unread))
        object.__setattr__(self._network, "_model", model)
        object.__setattr__(self._network, "_layers", [Layer(self._trt, n.name) for n in model.graph.node])
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> str:
        return self._errors[index]


class Config(Guarded):
    def __init__(self, trt: RecordedTensorrt) -> None:
        super().__init__(trt, "IBuilderConfig")
        for key, value in (
            ("_flags", set()),
            ("_cleared", set()),
            ("_shapes", {}),
            ("_limits", {}),
            ("_cache", None),
        ):
            object.__setattr__(self, key, value)
        object.__setattr__(self, "_verbosity", "LAYER_NAMES_ONLY")

    @property
    def profiling_verbosity(self) -> Any:
        return self._verbosity

    @profiling_verbosity.setter
    def profiling_verbosity(self, value: Any) -> None:
        names = SURFACES[self._trt._era]["ProfilingVerbosity"]
        object.__setattr__(self, "_verbosity", names[value])

    def _name(self, flag: int) -> str:
        return SURFACES[self._trt._era]["BuilderFlag"][flag]

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self._limits[pool] = size

    def set_flag(self, flag: int) -> None:
        self._flags.add(self._name(flag))

    def clear_flag(self, flag: int) -> None:
        self._cleared.add(self._name(flag))

    def add_optimization_profile(self, profile: Any) -> int:
        self._shapes.update(profile._shapes)
        return 0

    def create_timing_cache(self, data: bytes) -> Any:
        return TimingCache(self._trt, data)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        object.__setattr__(self, "_cache", cache._data)
        return True

    def get_timing_cache(self) -> Any:
        return TimingCache(self._trt, b"timings")


class TimingCache(Guarded):
    def __init__(self, trt: RecordedTensorrt, data: bytes) -> None:
        super().__init__(trt, "ITimingCache")
        object.__setattr__(self, "_data", data)

    def serialize(self) -> bytes:
        return self._data


class ShapeProfile(Guarded):
    def __init__(self, trt: RecordedTensorrt) -> None:
        super().__init__(trt, "IOptimizationProfile")
        object.__setattr__(self, "_shapes", {})

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        assert all(a <= b <= c for a, b, c in zip(least, best, most, strict=True))
        self._shapes[name] = [list(least), list(best), list(most)]


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


class Inspector(Guarded):
    """Answers in the documented layouts, one kernel per ONNX node."""

    def __init__(self, trt: RecordedTensorrt, head: dict[str, Any], model: Any) -> None:
        super().__init__(trt, "EngineInspector")
        for key, value in (("_head", head), ("_model", model)):
            object.__setattr__(self, key, value)

    def get_engine_information(self, form: Any) -> str:
        trt = self._trt
        assert form == trt.LayerInformationFormat.JSON
        nodes = list(self._model.graph.node)
        if self._head["verbosity"] != "DETAILED" or trt._sabotage.names_only:
            return json.dumps({"Layers": [node.name for node in nodes], "Bindings": []})
        layers = [self._layer(node) for node in nodes]
        if trt._sabotage.extra_node:
            layers[-1]["Metadata"] += f"\x1f[ONNX Layer: {trt._sabotage.extra_node}]"
        names = [v.name for v in (*self._model.graph.input, *self._model.graph.output)]
        if trt._era == "11":
            return json.dumps({"Layers": layers, "I/O Tensors": [{"Name": n, "IOMode": "Input"} for n in names]})
        return json.dumps({"Layers": layers, "Bindings": names})

    def _layer(self, node: Any) -> dict[str, Any]:
        layer = {"Name": node.name, "LayerType": "kgen", "Inputs": [], "Outputs": [], "TacticName": "kernel"}
        kinds = self._kinds()
        half = self._forced(node)
        for side, names in (("Inputs", node.input), ("Outputs", node.output)):
            layer[side] = [self._tensor(name, half or kinds.get(name, np.dtype(np.float32))) for name in names if name]
        if self._trt._era != "8.5":
            layer["Name"] = f"__myl_{node.op_type}"
            layer["Metadata"] = f"[ONNX Layer: {node.name}]"
        return layer

    def _forced(self, node: Any) -> Any:
        """The precision that flags or a sabotage give a node instead of its own."""
        if self._trt._sabotage.precision:
            return np.dtype({"fp32": np.float32, "fp16": np.float16}[self._trt._sabotage.precision])
        weak = not self._head["strong"] and node.name not in self._head["pinned"]
        int8 = weak and "INT8" in self._head["flags"] and all("DequantizeLinear" in name for name in node.input[:2])
        if int8:
            return np.dtype(np.int8)
        return np.dtype(np.float16) if weak and "FP16" in self._head["flags"] else None

    def _kinds(self) -> dict[str, Any]:
        inferred = onnx.shape_inference.infer_shapes(self._model)
        found = {v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *inferred.graph.input)}
        found |= {t.name: t.data_type for t in inferred.graph.initializer}
        kinds = {name: np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)) for name, kind in found.items() if kind}
        # A product of two dequantised values is an int8 kernel, whatever its operands are in between.
        kinds |= {n.output[0]: np.dtype(np.int8) for n in self._model.graph.node if n.op_type == "DequantizeLinear"}
        return kinds

    def _tensor(self, name: str, kind: Any) -> dict[str, Any]:
        short, long = TOLD.get(np.dtype(kind), ("Int64", "INT64"))
        if self._trt._era == "11":
            return {"Name": name, "DataType": short, "Format": f"Row major linear {long} format (kLINEAR)"}
        return {"Name": name, "Location": "Device", "Format/Datatype": f"Row major linear {long} format"}


@dataclass
class Device:
    """One recorded device: its TensorRT and its CUDA."""

    trt: RecordedTensorrt
    cudart: FakeCudart
    sabotage: Sabotage = field(init=False)

    def __post_init__(self) -> None:
        self.sabotage = self.trt._sabotage


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Device]]:
    """``device(era)``: from then on ``import tensorrt`` and CUDA are the recorded ones of that release."""

    def install(era: str) -> Device:
        cudart = FakeCudart()
        made = Device(RecordedTensorrt(era, cudart), cudart)
        monkeypatch.setitem(sys.modules, "tensorrt", made.trt)
        monkeypatch.setattr(Cuda, "open", classmethod(lambda cls: cls(cudart)))
        return made

    return install


@pytest.fixture(scope="session")
def eras() -> tuple[str, ...]:
    return ERAS


@pytest.fixture(scope="session", name="surfaces")
def _surfaces() -> dict[str, Any]:
    return SURFACES


@dataclass
class Prepared:
    """Deferred bundles, each made once by the command line; ``fresh`` gives a copy that a test may finish."""

    workshop: Any
    run_export: Callable[..., Any]
    folder: Path
    made: dict[tuple[str, ...], Path] = field(default_factory=dict)
    runs: dict[Path, Any] = field(default_factory=dict)

    def bundle(self, name: str, mode: str, precision: str, *options: str) -> Path:
        key = (name, mode, precision, *options)
        if key not in self.made:
            output = self.folder / f"{len(self.made)}-{name}-{precision}"
            words = ["--layers", "all", "--mode", mode, "--precision", precision, *options]
            words += ["--left", "12", "--chunk", "4"] if mode == "streaming" else []
            words += ["--calibration", str(self.workshop.speech)] if precision.startswith("int8") else []
            checkpoint = self.workshop.checkpoint(name)
            run = self.run_export(checkpoint, "--target", "tensorrt", *words, "--output", output)
            assert run.status == 5, run.err
            self.made[key], self.runs[output] = output, run
        return self.made[key]


@pytest.fixture(scope="session")
def prepared(workshop: Any, run_export: Any, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    if "tensorrt" in sys.modules:
        pytest.fail("a TensorRT is there: these tests are for machines without")
    return Prepared(workshop, run_export, tmp_path_factory.mktemp("prepared"))
