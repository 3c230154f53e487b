"""Whether an engine is what was asked for: its precisions, and the nodes that it says it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tensorrt.build_request import BuildRequest, Variant
from reuse_distill.runtime.tensorrt.engine_inspector import EngineLayer

LOWER = {"fp16", "bf16", "int8", "fp8"}
WEAK_SHARE = 0.5  # a weakly typed builder may keep a layer in float where that is faster: not most of them


def check_precision(layers: Sequence[EngineLayer], request: BuildRequest, variant: Variant) -> dict[str, Any]:
    """What precision the weighted nodes run at, for the manifest.

    Raises RdError where the layers do not have the precision asked for, or where none of them can be told.
    """
    wanted = request.precision
    seen = {name: layer for layer in layers for name in layer.onnx if name in set(variant.weighted)}
    if not seen:
        raise RdError(
            f"the engine's layers name none of the {len(variant.weighted)} nodes that should run at {wanted}",
            hint="its precision cannot be told, so it is not accepted; keep inspector.json for a report",
        )
    wrong = [f"{name} ({_told(layer)})" for name, layer in sorted(seen.items()) if not _has(layer, wanted)]
    share = 1 - len(wrong) / len(seen)
    strict = variant.typing == "strong" or wanted in ("fp32", "int8")
    if wrong and (strict or share < WEAK_SHARE):
        raise RdError(
            f"the engine does not run at {wanted}: {len(wrong)} of {len(seen)} layers that can be told do not, "
            f"such as {', '.join(wrong[:3])}",
            hint="the engine is not accepted; see docs/tensorrt.md, reading refusals",
        )
    return {
        "asked": wanted,
        "told": len(seen),
        "as_asked": len(seen) - len(wrong),
        "not_told": len(variant.weighted) - len(seen),
        "layers": dict(sorted(Counter(_told(layer) for layer in layers).items())),
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


def _has(layer: EngineLayer, wanted: str) -> bool:
    if wanted == "fp32":
        return not (layer.precisions | {t.precision for t in layer.outputs}) & LOWER
    return wanted in layer.precisions


def _told(layer: EngineLayer) -> str:
    lower = sorted(layer.precisions & LOWER)
    return "+".join(lower) if lower else ("fp32" if "fp32" in layer.precisions else "unknown")
