"""Q/DQ for every target that takes it: ranges of activations, and ONNX Runtime's quantiser that writes them.

Ranges are measured once on calibration audio and used for every way to quantise the graph.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from reuse_distill.export.quantise.quantisation_recipe import Recipe
from reuse_distill.runtime.errors import RdError

if TYPE_CHECKING:
    import onnx_ir as ir

# With ONNX Runtime's own 128 bins for 128 steps there is nothing to choose from.
ENTROPY_BINS = 512
Ranges = dict[str, tuple[float, float]]  # tensor -> smallest and largest value that its scale keeps


def measure_ranges(
    file: Path, feeds: Iterable[Mapping[str, np.ndarray]], recipe: Recipe, operators: Iterable[str]
) -> Ranges:
    """Ranges of everything that ``operators`` read and write, by the recipe's method, over ``feeds``.

    minmax: smallest and largest. percentile: what keeps that share of the values (from 2048 bins). entropy: the
    clipping that loses least by ONNX Runtime's measure (512 bins). Raises RdError when nothing was fed.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    method = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }[recipe.method]
    options = {
        "minmax": {},
        "percentile": {"percentile": recipe.percentile, "symmetric": False, "num_bins": 2048},
        "entropy": {"num_bins": ENTROPY_BINS},
    }[recipe.method]
    nowhere = io.StringIO()  # the histogram methods report on stdout
    with tempfile.TemporaryDirectory(prefix="rd-ranges-") as scratch, contextlib.redirect_stdout(nowhere):
        calibrator = create_calibrator(
            file, list(operators), str(Path(scratch) / "augmented.onnx"), method, extra_options=options
        )
        fed = 0
        for feed in feeds:  # one at a time: the histogram methods hold every activation of what they are given
            calibrator.collect_data(_reader([feed]))
            fed += 1
        if not fed:
            raise RdError(
                "no recording is long enough to calibrate with", hint="give longer recordings (--calibration)"
            )
        computed = calibrator.compute_data()
    return {name: _pair(name, value.range_value) for name, value in computed.items()}


def _pair(name: str, values: tuple[Any, Any]) -> tuple[float, float]:
    low, high = (float(np.asarray(value).reshape(-1)[0]) for value in values)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise RdError(f"calibration: {name} reaches {low} .. {high}", hint="look for broken recordings (--calibration)")
    return low, high


def kept_ranges(
    kept: Path, file: Path, feeds: Iterator[Mapping[str, np.ndarray]], recipe: Recipe, operators: Iterable[str]
) -> Ranges:
    """``measure_ranges``, or what an earlier candidate of the same export left in the folder ``kept``."""
    key = f"{recipe.method}-{recipe.percentile:g}" if recipe.method == "percentile" else recipe.method
    note = kept / f"ranges-{file.stem}-{key}.json"
    if note.exists():
        return {name: (low, high) for name, (low, high) in json.loads(note.read_text()).items()}
    ranges = measure_ranges(file, feeds, recipe, operators)
    note.write_text(json.dumps(ranges))
    return ranges


def tensors_data(ranges: Ranges) -> Any:
    """The ranges as ONNX Runtime's quantiser takes them."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import TensorsData

    pairs = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    return TensorsData(CalibrationMethod.MinMax, pairs)


def _reader(feeds: Iterable[Mapping[str, np.ndarray]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else dict(row)

    return Reader()


@dataclass(frozen=True)
class Style:
    """What a target's reader of Q/DQ wants besides the recipe."""

    signed: bool = False  # activations int8 instead of uint8
    options: dict[str, Any] = field(default_factory=dict)


def write_qdq(
    source: Path,
    target: Path,
    ranges: Ranges,
    recipe: Recipe,
    *,
    operators: Iterable[str],
    in_float: Iterable[str],
    style: Style,
) -> None:
    """Write the Q/DQ graph ``target`` of the fp32 ``source``; ``in_float`` names the nodes that stay as they are.

    Raises RdError with the quantiser's own message when it fails.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # the quantiser advises pre-processing that has been done
    symmetric = {} if recipe.symmetric_activations is None else {"ActivationSymmetric": recipe.symmetric_activations}
    try:
        quantiser = QDQQuantizer(
            load_model_with_shape_infer(source),
            recipe.per_channel,
            recipe.reduce_range,
            QuantType.QInt8,
            QuantType.QInt8 if style.signed else QuantType.QUInt8,
            tensors_data(ranges),
            [],
            list(in_float),
            list(operators),
            {**style.options, **symmetric},
        )
        quantiser.quantize_model()
        quantiser.model.save_model_to_file(str(target), False)
    except OSError:
        raise  # of the disk: the bundle writer says so
    except Exception as error:
        raise RdError(
            f"ONNX Runtime's quantiser failed: {str(error).strip().splitlines()[0]}",
            hint="export with --precision fp32 or fp16, or see constraints.txt for the verified versions",
        ) from error
    finally:
        logger.setLevel(level)


def release_outputs(model: ir.Model, nodes: Iterable[str]) -> list[str]:
    """Let what follows the named nodes take their results as they are, without Q/DQ; returns the nodes it was done for.

    A projection head's product is the feature but for its bias: rounding it to 256 steps would round the feature.
    """
    chosen, released = set(nodes), []
    for node in [node for node in model.graph if node.name in chosen]:
        plain = node.outputs[0]
        for quantise in [user for user in plain.consumers() if user.op_type == "QuantizeLinear"]:
            users = quantise.outputs[0].consumers()
            dequantisers = [user for user in users if user.op_type == "DequantizeLinear"]
            for dequantise in dequantisers:
                dequantise.outputs[0].replace_all_uses_with(plain)
            whole = len(dequantisers) == len(users)  # nothing takes the integers themselves
            model.graph.remove([*dequantisers, quantise] if whole else dequantisers, safe=True)
            released.append(str(node.name))
    return released
