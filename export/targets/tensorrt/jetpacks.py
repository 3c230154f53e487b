"""What each JetPack's TensorRT reads and runs, as far as the checker needs it.

Sources: versions and API, FACTS and NVIDIA's JetPack and TensorRT release notes; opsets and operators, ONNX-TensorRT
``docs/operators.md`` of each release and its changelog; typing and flags, "Removed Python APIs and Replacements"
(TensorRT 10.x to 11.x) and the Python bindings of each release; JetPack 7.2.2, "Migrating TensorRT from 10.x to 11.x on
Jetson/JetPack" of 11.4.1 (Jetson AGX Orin and Thor only).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from reuse_distill.devices.device_profiles import find_profile
from reuse_distill.runtime.errors import RdError, nearest

# Never read by any release: quantised results in one operator, and quantisation at run time.
NEVER = frozenset(
    ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear", "StringConcat")
)


@dataclass(frozen=True)
class JetPack:
    """One row of the table."""

    name: str
    tensorrt: str
    opset: int  # highest that the parser is documented to read
    lacks: frozenset[str]  # operators that students' graphs may have and this parser does not read
    weak: bool  # builder flags choose precisions
    strong: bool  # the graph does
    bf16: bool

    @property
    def typing(self) -> str:
        """The mode that a bundle is built in there."""
        return "strong" if self.strong else "weak"


_OLD = frozenset({"Gelu", "GroupNormalization", "LayerNormalization"})
JETPACKS = {
    row.name: row
    for row in (
        JetPack("5.1", "8.5.2", 17, _OLD, weak=True, strong=False, bf16=False),
        JetPack("6.0", "8.6.2", 17, frozenset({"Gelu"}), weak=True, strong=False, bf16=False),
        JetPack("6.1", "10.3", 20, frozenset(), weak=True, strong=True, bf16=True),
        JetPack("6.2", "10.3", 20, frozenset(), weak=True, strong=True, bf16=True),
        # The parser of 10.13 and 10.16 may read more than opset 20: not looked up, students do not need more.
        JetPack("thor", "10.13", 20, frozenset(), weak=True, strong=True, bf16=True),
        JetPack("7.2", "10.16", 20, frozenset(), weak=True, strong=True, bf16=True),
        JetPack("7.2.2", "11.4", 25, frozenset(), weak=False, strong=True, bf16=True),
    )
}


def find_jetpack(name: str) -> JetPack:
    """The row called ``name`` (``6.2``, ``thor``, ``7.2.2``). Raises RdError with the nearest name."""
    key = name.lower().removesuffix("+")
    if key not in JETPACKS:
        raise RdError(f"JetPack {name!r} is not in the table", hint=nearest(key, list(JETPACKS)))
    return JETPACKS[key]


def of_device(name: str) -> list[JetPack]:
    """The rows whose TensorRT the device profile ``name`` lists. Raises RdError where it lists none."""
    profile = find_profile(name)
    versions = {v for system in profile.systems for v in re.findall(r"(?:TensorRT|,) (\d+\.\d+(?:\.\d+)?)", system)}
    matching = [row for row in JETPACKS.values() if row.tensorrt in versions]
    if not matching:
        raise RdError(f"device {name} runs no TensorRT that is in the table", hint=f"known: {', '.join(JETPACKS)}")
    return matching
