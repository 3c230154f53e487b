"""Smaller weights, and eight-bit activations, on a converted model; every function returns a new model.

The graph passes are coremltools' own. They are applied here and not by its public functions because those calibrate
by predictions, which need a Mac, and convert again with a pass that stumbles over Core ML State.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reuse_distill.export.targets.coreml.coreml_vendor import coremltools, quiet
from reuse_distill.export.targets.coreml.package_convert import pipeline
from reuse_distill.export.targets.coreml.palette import palette_function
from reuse_distill.export.targets.vendor_packages import first_line
from reuse_distill.runtime.errors import RdError

LEAST_WEIGHTS = 2048  # smaller tensors stay in float: a thousandth of the size, and some of the precision


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
