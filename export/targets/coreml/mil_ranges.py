"""Ranges of activations, measured on the saved package by the evaluator: coremltools' own calibration needs a Mac."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from reuse_distill.export.quantise.blocks import BlockOperation, blocks_of
from reuse_distill.export.quantise.quantisation_recipe import Recipe
from reuse_distill.export.targets.coreml.evaluator import Evaluator
from reuse_distill.export.targets.coreml.mil_program import MilOperation, MilProgram
from reuse_distill.runtime.errors import RdError


def quantisable(program: MilProgram, recipe: Recipe, *, depth: int) -> dict[str, str]:
    """Output of every operation whose input goes to int8 -> the name of that input.

    Weight products and convolutions, but for the first (the full dynamic range of the microphone), the positional one
    and those of blocks that the recipe keeps in float. MIL keeps no module names: blocks go by place.
    """
    kinds = {"conv": "conv", "layer_norm": "norm"}
    blocks = blocks_of([BlockOperation(kinds.get(o.kind, "other")) for o in program.operations], depth)
    chosen, first = {}, True
    for operation, block in zip(program.operations, blocks, strict=True):
        if operation.kind not in ("conv", "linear"):
            continue
        waveform, first = first, False
        if operation.kind == "conv" and (waveform or _groups(program, operation) > 1):
            continue
        if not recipe.keeps_in_float(block):
            chosen[operation.outputs[0]] = operation.arguments["x"][0]
    return chosen


def _groups(program: MilProgram, operation: MilOperation) -> int:
    return int(program.constants[operation.arguments["groups"][0]]) if "groups" in operation.arguments else 1


def measure_ranges(
    package: Path, names: Iterable[str], feeds: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of every named activation over ``feeds``; raises RdError when there is no feed."""
    evaluator = Evaluator.load(package)
    observed, ranges = sorted(set(names)), dict[str, tuple[float, float]]()
    for feed in feeds:
        inputs, states = _split(evaluator.program, feed)
        values = evaluator.run(inputs, states=states, also=observed)
        for name in observed:
            low, high = float(values[name].min()), float(values[name].max())
            before = ranges.get(name, (low, high))
            ranges[name] = min(low, before[0]), max(high, before[1])
    if not ranges:
        raise RdError("no recording is long enough to calibrate with", hint="give longer recordings (--calibration)")
    return ranges


def _split(program: MilProgram, feed: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A feed as the package takes it: its types, and apart what the package keeps as state."""
    inputs = {name: feed[name].astype(kind.dtype) for name, kind in program.inputs.items()}
    return inputs, {name: feed[name].astype(kind.dtype) for name, kind in program.states.items()}
