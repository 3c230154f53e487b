"""Ranges of activations, measured on the saved package by the evaluator: coremltools' own calibration needs a Mac."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from export.coreml.evaluator import Evaluator
from export.coreml.program import MilOperation, MilProgram
from runtime.errors import RdError


def quantisable(program: MilProgram, *, front_end: bool) -> dict[str, str]:
    """Output of every operation whose input goes to int8 -> the name of that input.

    Weight products and convolutions, but for the first (the full dynamic range of the microphone) and the positional
    one; with ``front_end`` false no convolution at all.
    """
    chosen = {}
    for index, operation in enumerate(o for o in program.operations if o.kind in ("conv", "linear")):
        if operation.kind == "linear" or (front_end and index > 0 and _groups(program, operation) == 1):
            chosen[operation.outputs[0]] = operation.arguments["x"][0]
    return chosen


def _groups(program: MilProgram, operation: MilOperation) -> int:
    return int(program.constants[operation.arguments["groups"][0]]) if "groups" in operation.arguments else 1


def measure_ranges(
    package: Path, names: Iterable[str], feeds: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of every named activation over ``feeds``; raises RdError when there is no feed."""
    evaluator = Evaluator.load(package)
    wanted, found = sorted(set(names)), dict[str, tuple[float, float]]()
    for feed in feeds:
        inputs, states = _split(evaluator.program, feed)
        values = evaluator.run(inputs, states=states, also=wanted)
        for name in wanted:
            low, high = float(values[name].min()), float(values[name].max())
            before = found.get(name, (low, high))
            found[name] = min(low, before[0]), max(high, before[1])
    if not found:
        raise RdError("no recording is long enough to calibrate with", hint="give longer recordings (--calibration)")
    return found


def _split(program: MilProgram, feed: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A feed as the package takes it: its types, and apart what the package keeps as state."""
    inputs = {name: feed[name].astype(kind.dtype) for name, kind in program.inputs.items()}
    return inputs, {name: feed[name].astype(kind.dtype) for name, kind in program.states.items()}
