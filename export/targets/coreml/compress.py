"""Smaller weights, and eight-bit activations, on a converted model; every function returns a new model.

The graph passes are coremltools' own. They are applied here and not by its public functions because those calibrate
by predictions, which need a Mac, and convert again with a pass that fails on Core ML State. Ranges of activations
are measured on the saved package by the evaluator; a palette is a table of 2^bits values by one-dimensional k-means.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.quantise.blocks import BlockOperation, blocks_of
from reuse_distill.export.quantise.quantisation_recipe import Recipe
from reuse_distill.export.targets.coreml.evaluator import Evaluator
from reuse_distill.export.targets.coreml.mil_program import MilOperation, MilProgram
from reuse_distill.export.targets.coreml.package_convert import pipeline
from reuse_distill.export.targets.vendor_packages import coremltools, first_line, quiet
from reuse_distill.runtime.errors import RdError

ITERATIONS = 100
LEAST_WEIGHTS = 2048  # smaller tensors stay in float: a thousandth of the size, and some of the precision


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


def palette(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(table [2^bits], indices uint8 [values.size]) that minimise the squared error locally, by Lloyd's iterations.

    On sorted values every cluster is a range, so an iteration costs one search per border. Deterministic: it starts
    from the quantiles, half of them, and an even spread over the range, the other half.
    """
    ordered = np.sort(values.ravel().astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    count = 1 << bits
    quantiles = np.quantile(ordered, (np.arange(count // 2) + 0.5) / (count // 2))
    table = np.sort(np.concatenate([quantiles, np.linspace(ordered[0], ordered[-1], count - count // 2)]))
    for _ in range(ITERATIONS):
        borders = np.searchsorted(ordered, (table[1:] + table[:-1]) / 2)
        edges = np.concatenate([[0], borders, [len(ordered)]])
        sizes = np.diff(edges)
        means = np.where(sizes > 0, np.diff(sums[edges]) / np.maximum(sizes, 1), table)
        if np.array_equal(means, table):
            break
        table = np.sort(means)
    stored = table.astype(values.dtype)
    middles = (stored[1:].astype(np.float64) + stored[:-1]) / 2
    return stored, np.searchsorted(middles, values.ravel()).astype(np.uint8)


def palette_function(bits: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """``palette`` in the form that coremltools calls."""
    return lambda values: palette(values, bits)


@dataclass(frozen=True)
class Weights:
    """How weights are stored: ``bits`` 8 is int8 per output channel, fewer is a palette per tensor."""

    bits: int
    least: int = LEAST_WEIGHTS


@dataclass(frozen=True)
class Activations:
    """Inputs that go to int8, one symmetric scale per tensor: before every operation of ``inputs``."""

    inputs: Mapping[str, str]  # output of the operation -> the activation
    ranges: Mapping[str, tuple[float, float]]  # activation -> smallest and largest value


def compressed(model: Any, weights: Weights, activations: Activations | None = None) -> Any:
    """``model`` with smaller weights and, on request, int8 activations.

    Raises RdError with coremltools' own message when a pass fails.
    """
    try:
        passes = [] if activations is None else _activation_passes(activations)
        with quiet():
            return _rewritten(model, [*passes, _weight_pass(weights)], later=activations is not None)
    except RdError:
        raise
    except Exception as error:
        raise RdError(
            f"coremltools could not compress the model: {first_line(error)}",
            hint="export with --precision fp16, or see constraints.txt for the verified versions",
        ) from error


def _weight_pass(weights: Weights) -> Any:
    if weights.bits == 8:
        options = coremltools().optimize.coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=weights.least
        )
        return _pass("compression::linear_quantize_weights", options)
    options = coremltools().optimize.coreml.OpPalettizerConfig(
        mode="custom", lut_function=palette_function(weights.bits), weight_threshold=weights.least
    )
    return _pass("compression::palettize_weights", options)


def _activation_passes(activations: Activations) -> list[Any]:
    ct = coremltools()
    options = ct.optimize.coreml.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8")
    insert = _pass("compression::insert_prefix_quantize_dequantize_pair", options)
    insert.op_selector = lambda op: op.outputs[0].name in activations.inputs
    insert.activation_stats = {name: {"rmin": low, "rmax": high} for name, (low, high) in activations.ranges.items()}
    return [insert, _registered("common::remove_redundant_ops")]


def _pass(name: str, options: Any) -> Any:
    registered = _registered(name)
    registered.config = coremltools().optimize.coreml.OptimizationConfig(global_config=options)
    return registered


def _registered(name: str) -> Any:
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    return copy.copy(PASS_REGISTRY[name])  # options are set on it; the registered one is shared by the process


def _rewritten(model: Any, passes: list[Any], *, later: bool) -> Any:
    """The model after ``passes``; ``later``: operations of iOS 17 come in."""
    from coremltools.converters.mil.converter import mil_convert
    from coremltools.converters.mil.frontend.milproto.load import load

    specification = model.get_spec()
    version = max(specification.specificationVersion, 8 if later else 7)  # 7 is iOS 16, 8 iOS 17, 9 iOS 18
    program = load(model_spec=specification, specification_version=version, file_weights_dir=model.weights_dir)
    for graph_pass in passes:
        graph_pass.apply(program)
    return mil_convert(
        program,
        convert_to="mlprogram",
        convert_from="milinternal",
        specification_version=version,
        compute_units=model.compute_unit,
        model_description=specification.description,
        pass_pipeline=pipeline(),
        skip_model_load=True,
    )
