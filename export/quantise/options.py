"""The options of ``rd-export`` that say what is quantised: ``--precision``, ``--recipe``, ``--preset``.

A preset is what int8 looks like for one kind of processor, by the names of optimum's ``AutoQuantizationConfig``.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any

from reuse_distill.export.quantise.quantisation_recipe import Recipe, check_blocks, of_precision, read_recipe
from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.student import StudentConfig


def quantisation_of(args: argparse.Namespace, config: StudentConfig) -> tuple[str, Recipe | None]:
    """(short name of the precision, the recipe where it says more); raises RdError where options contradict."""
    if args.max_drift is not None and not 0 < args.max_drift < 1:
        raise RdError(f"--max-drift {args.max_drift:g} is outside 0..1", hint="0.005 is a mean frame cosine of 0.995")
    if args.max_drift is not None and args.front_end != "auto":
        raise RdError("--front-end and --max-drift both say what stays in float", hint="give one of them")
    if args.recipe is None:
        return _precision(args), None
    if args.precision is not None:
        raise RdError("--precision and --recipe both say what is quantised", hint="give one of them")
    if args.preset is not None:
        raise RdError("--preset and --recipe both say what is quantised", hint='a recipe may name a "preset"')
    if args.front_end != "auto":
        raise RdError('--front-end is for --precision: the recipe names "front-end" in in_float, or does not')
    given = read_recipe(args.recipe)
    check_preset(given)
    check_blocks(given.in_float, config)
    return given.precision(args.target), given


def _precision(args: argparse.Namespace) -> str:
    """The short name that ``--precision`` and ``--preset`` ask for; raises RdError where there is none."""
    if args.preset is None:
        precision = "fp32" if args.precision is None else str(args.precision)
        of_precision(precision)
        return precision
    precision = "int8" if args.precision is None else str(args.precision)
    preset_recipe(args.preset, precision)
    return precision


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
                f"recipe: preset {recipe.preset} has {field} {_as_text(value)}, the recipe says {_as_text(own)}",
                hint=f"set {field} to {_as_text(value)}, or leave preset out",
            )


def _settings(preset: Preset) -> dict[str, Any]:
    return {field: getattr(preset, field) for field in SETTINGS}


def _as_text(value: bool | None) -> str:
    return "nothing" if value is None else str(value).lower()
