"""``--preset``: what int8 looks like for one kind of processor, by the names of optimum's ``AutoQuantizationConfig``.

The values are those of optimum-onnx 0.1.0 (``optimum/onnxruntime/configuration.py``: ``arm64``, ``avx512_vnni``,
``tensorrt``); a test compares them with its own objects. Which operators are quantised stays this project's choice.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from reuse_distill.export.quantise.quantisation_recipe import Recipe, of_precision
from reuse_distill.runtime.errors import RdError, nearest


@dataclass(frozen=True)
class Preset:
    """One processor's int8; weights are int8 and symmetric in all of them."""

    activations: str  # uint8 | int8: which of the two a target writes is its own, so it takes presets of one kind
    symmetric_activations: bool
    per_channel: bool
    reduce_range: bool
    dynamic: bool  # whether ranges may be measured as inputs come, too


PRESETS = {
    "arm64": Preset("uint8", symmetric_activations=False, per_channel=True, reduce_range=False, dynamic=True),
    "avx512_vnni": Preset("uint8", symmetric_activations=False, per_channel=True, reduce_range=False, dynamic=True),
    "tensorrt": Preset("int8", symmetric_activations=True, per_channel=True, reduce_range=False, dynamic=False),
}
SETTINGS = ("symmetric_activations", "per_channel", "reduce_range")


def find_preset(name: str) -> Preset:
    """The preset called ``name``; raises RdError with the nearest name."""
    if name not in PRESETS:
        raise RdError(f"--preset {name} is unknown", hint=nearest(name, list(PRESETS)))
    return PRESETS[name]


def with_activations(kind: str) -> tuple[str | None, ...]:
    """The values of ``Recipe.preset`` for a target whose activations are ``kind``: none, or one that says the same."""
    return (None, *(name for name, preset in PRESETS.items() if preset.activations == kind))


def preset_recipe(name: str, precision: str) -> Recipe:
    """The recipe of ``--preset NAME --precision PRECISION``; raises RdError where the two contradict."""
    preset, recipe = find_preset(name), of_precision(precision)
    if recipe.activations == "float":
        raise RdError(
            f"--preset {name} is for products in int8, --precision {precision} computes them in float",
            hint="leave --precision out: a preset means int8",
        )
    if recipe.activations == "int8-dynamic" and not preset.dynamic:
        raise RdError(
            f"--preset {name} is static, --precision {precision} is not", hint="leave --precision out, or use int8"
        )
    return dataclasses.replace(recipe, preset=name, **_settings(preset))


def check_preset(recipe: Recipe) -> None:
    """Raises RdError where a recipe from a file names a preset and says otherwise than that."""
    if recipe.preset is None:
        return
    for field, value in _settings(find_preset(recipe.preset)).items():
        own = getattr(recipe, field)
        if own != value:
            raise RdError(
                f"recipe: preset {recipe.preset} has {field} {_said(value)}, the recipe says {_said(own)}",
                hint=f"set {field} to {_said(value)}, or leave preset out",
            )


def _settings(preset: Preset) -> dict[str, Any]:
    return {field: getattr(preset, field) for field in SETTINGS}


def _said(value: bool | None) -> str:
    return "nothing" if value is None else str(value).lower()
