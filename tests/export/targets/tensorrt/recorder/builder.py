"""Network, configuration and builder: checks what it is requested, and writes the ONNX file as the engine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .config import Config, ShapeProfile
from .surface import SURFACES, Guarded

if TYPE_CHECKING:
    from .module import RecordedTensorrt


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
