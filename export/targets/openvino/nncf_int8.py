"""Static int8 for OpenVINO: NNCF's post-training quantisation under our calibration audio and recipe.

What stays in float is what does for the target ``onnx``: the waveform and the positional convolution, attention
products, softmax, sums that reach far, and the recipe's blocks. NNCF adds SmoothQuant and the correction of biases.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reuse_distill.export.quantise.blocks import kept_by_recipe
from reuse_distill.export.quantise.calibration import EveryFeed
from reuse_distill.export.quantise.quantisation_recipe import FRONT_END, Recipe
from reuse_distill.export.spec import Streaming
from reuse_distill.export.targets.onnx.static_int8 import OPERATORS, excluded_nodes
from reuse_distill.runtime.engines.openvino.openvino_backend import last_line
from reuse_distill.runtime.errors import RdError, install_hint

EVERY_ROW = 1 << 30  # NNCF takes this many, or all there are
SPLIT = "/WithoutBiases"  # the convolution itself, where the converter writes its bias as a sum of the node's name


def nodes_in_float(plain: Path, recipe: Recipe, depth: int) -> dict[str, str]:
    """Name of an ONNX node -> why it stays in float. The converter keeps these names."""
    import onnx

    model = onnx.load(str(plain), load_external_data=False)
    return {**kept_by_recipe(model, recipe, depth, OPERATORS), **excluded_nodes(model)}


def present_in(model: Any, in_float: Mapping[str, str]) -> dict[str, str]:
    """``in_float`` under the names that the operations have in an OpenVINO model."""
    names = {operation.get_friendly_name() for operation in model.get_ordered_ops()}
    return {alias: why for name, why in in_float.items() for alias in (name, f"{name}{SPLIT}") if alias in names}


def quantise(model: Any, rows: EveryFeed, recipe: Recipe, in_float: Mapping[str, str]) -> tuple[Any, dict[str, Any]]:
    """(the model in int8, what was done for the manifest); ``rows``: inputs of the model from the calibration audio.

    The range of an activation is the mean over the clips of the least and the largest value, as NNCF has it; of a
    stream's steps it is the least and the largest of all. Raises RdError where NNCF is missing or fails, with its own
    message.
    """
    try:
        with quiet():
            import nncf
            from nncf.quantization.range_estimator import RangeEstimatorParameters, RangeEstimatorParametersSet
    except ImportError as error:
        raise RdError(f"{error.name or 'nncf'} is not installed", hint=install_hint("openvino")) from None
    kept = present_in(model, in_float)
    symmetric = bool(recipe.symmetric_activations)
    preset = nncf.QuantizationPreset.PERFORMANCE if symmetric else nncf.QuantizationPreset.MIXED
    fix = nncf.OverflowFix.ENABLE if recipe.reduce_range else nncf.OverflowFix.FIRST_LAYER
    steps = isinstance(rows.spec.mode, Streaming)
    estimator = RangeEstimatorParametersSet.MINMAX if steps else RangeEstimatorParameters()
    try:
        with quiet():
            done = nncf.quantize(
                model,
                nncf.Dataset(rows),
                subset_size=EVERY_ROW,
                model_type=nncf.ModelType.TRANSFORMER,
                preset=preset,
                ignored_scope=nncf.IgnoredScope(names=sorted(kept), validate=False),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    overflow_fix=fix, activations_range_estimator_params=estimator
                ),
            )
    except Exception as error:  # NNCF's errors have no common base of their own
        raise RdError(
            f"NNCF {nncf.__version__} could not quantise the model: {last_line(error)}",
            hint="see constraints.txt for the versions that this was verified with",
        ) from error
    quantisers = sum(operation.get_type_name() == "FakeQuantize" for operation in done.get_ordered_ops())
    if not quantisers:
        raise RdError("NNCF quantised nothing", hint="leave fewer blocks in float (in_float of the recipe)")
    return done, {
        "method": "static, NNCF post-training: min-max, SmoothQuant, fast bias correction",
        "format": "FakeQuantize",
        "activations": "int8 per tensor, symmetric" if symmetric else "uint8 or int8 per tensor",
        "weights": "int8 per output channel, symmetric" + (", in 7 bits" if recipe.reduce_range else ""),
        "quantisers": quantisers,
        "front_end": "float" if recipe.keeps_in_float(FRONT_END) else "int8",
        "in_float": [{"node": name, "why": why} for name, why in kept.items()],
    }


@contextlib.contextmanager
def quiet() -> Any:
    """Without NNCF's progress bars on stdout and its log."""
    log = logging.getLogger("nncf")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
