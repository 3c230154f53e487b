"""What the engine inspector tells of an engine, and whether that is what was requested: its precisions and its nodes.

The engine is built with detailed profiling verbosity. Key names by version (NVIDIA's documentation, "Engine Inspector"
and "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x"): up to 10.x a tensor has one text "Format/Datatype"
and the engine a list "Bindings"; in 11 type and format are apart and the list is "I/O Tensors". ONNX names stand in
"Metadata" as ``[ONNX Layer: name]`` from 8.6 (ONNX-TensorRT changelog); before that they are what layer names are put
together from.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reuse_distill.runtime.engines.tensorrt.build_request import BuildRequest, Variant
from reuse_distill.runtime.errors import RdError

_TYPE_KEYS = ("DataType", "Datatype", "Format/Datatype", "Format/DataType", "Format")
_PRECISIONS = (
    ("bf16", r"bf16|bfloat"),
    ("fp16", r"fp16|half|float16"),
    ("int8", r"\bint8|\bi8\b"),
    ("fp8", r"fp8"),
    ("int", r"\bint(32|64)|bool|uint8"),
    ("fp32", r"fp32|float"),
)
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]|]+?)\s*(?:\||\])")
LOWER = {"fp16", "bf16", "int8", "fp8"}
WEAK_SHARE = 0.5  # a weakly typed builder may keep a layer in float where that is faster: not most of them


@dataclass(frozen=True)
class EngineTensor:
    """One input or output of an engine layer."""

    name: str
    precision: str  # fp32, fp16, bf16, int8, fp8, int, or unknown


@dataclass(frozen=True)
class EngineLayer:
    """One layer (kernel) of an engine and the ONNX nodes that it says it comes from."""

    name: str
    kind: str  # LayerType
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    onnx: tuple[str, ...]
    tactic: str
    weights: str = "unknown"  # precision of its weights where it has its own
    attributed: bool = False  # whether the parser itself said so (Metadata), not the layer's name

    @property
    def precisions(self) -> frozenset[str]:
        """Of everything that goes in, weights included."""
        return frozenset({tensor.precision for tensor in self.inputs} | {self.weights}) - {"unknown"}


def read_layers(text: str) -> tuple[EngineLayer, ...]:
    """The layers of ``get_engine_information(JSON)``.

    Raises RdError for anything but JSON with a list of layers, and for layers that are names only.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise RdError(f"the engine inspector's answer is not JSON ({error})") from None
    layers = data.get("Layers") if isinstance(data, dict) else data
    if not isinstance(layers, list) or not layers:
        raise RdError("the engine inspector lists no layers", hint="the engine was built without profiling verbosity")
    names_only = [layer for layer in layers if not isinstance(layer, dict)]
    if names_only:
        raise RdError(
            f"the engine inspector gives only the names of {len(names_only)} of {len(layers)} layers",
            hint="build with ProfilingVerbosity.DETAILED (rd-export --finish does)",
        )
    return tuple(_layer(layer) for layer in layers)


def precision_of(text: str) -> str:
    """``Half``, ``Row major linear FP16 format``, ``Float`` … -> fp16, fp32 …"""
    for name, pattern in _PRECISIONS:
        if re.search(pattern, text, re.IGNORECASE):
            return name
    return "unknown"


def _layer(data: dict[str, Any]) -> EngineLayer:
    name = str(data.get("Name", ""))
    named = tuple(dict.fromkeys(_ONNX_LAYER.findall(str(data.get("Metadata", "")))))
    weights = data.get("Weights")
    return EngineLayer(
        name=name,
        kind=str(data.get("LayerType", "")),
        inputs=tuple(_tensor(t) for t in data.get("Inputs", [])),
        outputs=tuple(_tensor(t) for t in data.get("Outputs", [])),
        onnx=named or _names_in(name),
        tactic=str(data.get("TacticName", "")),
        weights=precision_of(str(weights.get("Type", ""))) if isinstance(weights, dict) else "unknown",
        attributed=bool(named),
    )


def _names_in(name: str) -> tuple[str, ...]:
    """``conv_0 + PWN(gelu_0)`` -> conv_0, gelu_0; of ``{ForeignNode[a...b]}`` only the ends are told."""
    parts = re.split(r"\s\+\s|\.\.\.|[\[\](){},]|\s", name)
    return tuple(dict.fromkeys(part for part in parts if part and part not in ("ForeignNode", "PWN")))


def _tensor(data: Any) -> EngineTensor:
    if not isinstance(data, dict):
        return EngineTensor(str(data), "unknown")
    precisions = [precision_of(str(data[key])) for key in _TYPE_KEYS if key in data]
    return EngineTensor(str(data.get("Name", "")), next((p for p in precisions if p != "unknown"), "unknown"))


def check_precision(layers: Sequence[EngineLayer], request: BuildRequest, variant: Variant) -> dict[str, Any]:
    """What precision the weighted nodes run at, for the manifest.

    Raises RdError where the layers do not have the requested precision, or where none of them can be determined.
    """
    precision = request.precision
    seen = {name: layer for layer in layers for name in layer.onnx if name in set(variant.weighted)}
    if not seen:
        raise RdError(
            f"the engine's layers name none of the {len(variant.weighted)} nodes that should run at {precision}",
            hint="its precision cannot be determined, so it is not accepted; keep inspector.json for a report",
        )
    wrong = [f"{name} ({_precision_text(layer)})" for name, layer in sorted(seen.items()) if not _has(layer, precision)]
    share = 1 - len(wrong) / len(seen)
    strict = variant.typing == "strong" or precision in ("fp32", "int8")
    if wrong and (strict or share < WEAK_SHARE):
        raise RdError(
            f"the engine does not run at {precision}: {len(wrong)} of {len(seen)} known layers do not, "
            f"such as {', '.join(wrong[:3])}",
            hint="the engine is not accepted; see docs/tensorrt.md, reading refusals",
        )
    return {
        "asked": precision,
        "told": len(seen),
        "as_asked": len(seen) - len(wrong),
        "not_told": len(variant.weighted) - len(seen),
        "layers": dict(sorted(Counter(_precision_text(layer) for layer in layers).items())),
    }


def check_names(layers: Sequence[EngineLayer], variant: Variant) -> dict[str, Any]:
    """Which of the proven graph's softmaxes the engine names, for the manifest.

    Raises RdError where the engine names a node that the proven graph does not have: it was built from something else.
    """
    named = Counter(name for layer in layers for name in layer.onnx)
    known = set(variant.known)
    foreign = sorted({name for layer in layers if layer.attributed for name in layer.onnx} - known)
    if foreign:
        raise RdError(
            f"the engine runs {len(foreign)} nodes that {variant.onnx} does not have, such as {foreign[0]}",
            hint="it was not built from the file in this bundle; finish the bundle again",
        )
    seen = [name for name in variant.softmaxes if named[name]]
    return {
        "softmaxes": len(variant.softmaxes),
        "named": len(seen),
        "in_several_layers": [name for name in seen if named[name] > 1],
    }


def _has(layer: EngineLayer, precision: str) -> bool:
    if precision == "fp32":
        return not (layer.precisions | {t.precision for t in layer.outputs}) & LOWER
    return precision in layer.precisions


def _precision_text(layer: EngineLayer) -> str:
    lower = sorted(layer.precisions & LOWER)
    return "+".join(lower) if lower else ("fp32" if "fp32" in layer.precisions else "unknown")
