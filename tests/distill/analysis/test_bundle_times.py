"""Bundles in turns by length of the utterance, and which smaller ones are not faster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reuse_distill.runtime
from reuse_distill.distill.analysis.analysis_page import _times, smaller_not_faster
from reuse_distill.distill.analysis.student_analysis import BundleTimes, MeasuredBundles, _name, timed_bundles
from reuse_distill.runtime.errors import RdError

SHIPPED = Path(reuse_distill.runtime.__file__).parent / "bundles/pocket-stream"


def bundle(name: str, size: int, short_s: float, long_s: float) -> BundleTimes:
    def of(value: float) -> dict[str, float]:
        return dict.fromkeys(("median", "p10", "p90"), value)

    times, ones = {2: of(short_s), 10: of(long_s)}, {2: of(1.0), 10: of(1.0)}
    return BundleTimes(name, "onnx", "fp32", "streaming", size, times, ones)


def test_smaller_and_not_faster() -> None:
    rows = (bundle("large", 9, 0.010, 0.010), bundle("small", 5, 0.012, 0.008), bundle("least", 1, 0.001, 0.001))
    measured = MeasuredBundles(rows, {"processor": "<p>"}, 10)
    assert smaller_not_faster(measured) == ["small is smaller than large, but not faster at 2 s."]
    assert smaller_not_faster(MeasuredBundles(rows[::2], {}, 10)) == ["Every smaller bundle is faster at every length."]
    page = _times(measured)
    assert "12.00" in page and "but not faster at 2 s" in page and "&lt;p&gt;" in page


def test_names() -> None:
    assert _name(Path("points/rows-50/bundle")) == "rows-50" and _name(Path("here/small")) == "small"


def test_the_shipped_bundle() -> None:
    measured = timed_bundles([SHIPPED], np.zeros(16_000, np.float32), repeats=1)
    [one] = measured.bundles
    assert one.target == "onnx" and list(one.processor_s) == [2, 5, 10] and one.size_bytes > 10**6
    assert all(value["median"] > 0 for value in one.processor_s.values())
    assert all(value["median"] == 1 for value in one.faster.values())


def test_what_cannot_be_timed(tmp_path: Path) -> None:
    with pytest.raises(RdError, match="not a bundle"):
        timed_bundles([tmp_path], np.zeros(16_000, np.float32))
    with pytest.raises(RdError, match="no audio to time"):
        timed_bundles([SHIPPED], np.zeros(0, np.float32))
