"""What the engine inspector tells, in the layout of each release."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from .surface import Guarded

if TYPE_CHECKING:
    from .module import RecordedTensorrt

TOLD = {
    np.dtype(np.float32): ("Float", "FP32"),
    np.dtype(np.float16): ("Half", "FP16"),
    np.dtype(np.int8): ("Int8", "INT8"),
}


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
