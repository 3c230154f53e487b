"""Which names each class of each release has, and objects that have no others."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .module import RecordedTensorrt

SURFACES = json.loads((Path(__file__).parents[1] / "surfaces.json").read_text())
ERAS = ("8.5", "8.6", "10.3", "10.13", "10.16", "11")


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
