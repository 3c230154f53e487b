"""The options of ``rd-export`` that say what is quantised: ``--precision``, ``--recipe``, ``--preset``."""

from __future__ import annotations

import argparse

from reuse_distill.export.quantise.processor_presets import check_preset, preset_recipe
from reuse_distill.export.quantise.quantisation_recipe import Recipe, check_blocks, of_precision, read_recipe
from reuse_distill.runtime.errors import RdError
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
