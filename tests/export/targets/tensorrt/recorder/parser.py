"""The ONNX parser, with the opsets and operators that a release does not read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

from .builder import Layer
from .surface import Guarded

if TYPE_CHECKING:
    from .module import RecordedTensorrt

OPSETS = {"8.5": 17, "8.6": 17}
UNREAD = {"8.5": {"Gelu", "LayerNormalization"}, "8.6": {"Gelu"}}


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
