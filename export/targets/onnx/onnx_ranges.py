"""Ranges of activations of an ONNX graph, measured once on calibration audio and used for every way to quantise it."""

from __future__ import annotations

import contextlib
import io
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.export.quantise.quantisation_recipe import Recipe
from reuse_distill.runtime.errors import RdError

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
