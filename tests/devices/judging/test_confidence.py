"""Early-stopping estimates: the counts of MLPerf's rule, their coverage, and what a short run is told."""

from __future__ import annotations

import numpy as np
import pytest
from reuse_distill.devices.judging.confidence import PERCENTILES, estimate, samples_needed, seconds_needed, too_short
from reuse_distill.devices.measuring.measurement import Request
from reuse_distill.runtime.errors import RdError


def test_the_counts_are_mlperf_s():
    assert {name: samples_needed(q) for name, q in PERCENTILES.items()} == {
        "p50": 11, "p90": 64, "p99": 662, "p999": 6636,
    }  # fmt: skip


@pytest.mark.parametrize("name", PERCENTILES)
def test_one_sample_fewer_is_unmeasured(name):
    needed = samples_needed(PERCENTILES[name])
    values = np.arange(needed, dtype=np.float64)
    assert estimate(values[1:], PERCENTILES[name]).value is None
    enough = estimate(values, PERCENTILES[name])
    assert (enough.value, enough.dropped) == (needed - 1, 0)  # all but one may be above: the slowest is the bound


def test_more_samples_bring_the_bound_nearer():
    values = np.arange(100_000) / 100_000
    found = [estimate(values[:: 100_000 // n][:n], 0.9).value for n in (64, 1000, 20_000)]
    assert found[0] > found[1] > found[2] > 0.9 and found[2] < 0.906


def test_the_true_percentile_is_below_the_estimate_with_99_per_cent_confidence():
    rng = np.random.default_rng(3)
    for name, n in (("p50", 40), ("p90", 64), ("p90", 300), ("p99", 700)):
        q = PERCENTILES[name]
        below = sum(estimate(rng.random(n), q).value < q for _ in range(1500))
        assert below <= 30, (name, n, below)  # 15 expected at most; 30 is beyond four standard deviations


def test_a_short_run_is_told_how_many_seconds_are_needed():
    text = too_short(["p90", "p99"], 125, period_s=0.16)
    assert text == (
        "p99 is unmeasured: 125 samples, 662 are needed, 106 s of audio (--seconds 106 or --until-enough p99)"
    )
    assert too_short(["p90"], 64, period_s=0.16) == ""
    assert seconds_needed("p99", period_s=0.16, streams=8) == pytest.approx(83 * 0.16)


def test_until_enough_is_a_count_known_beforehand():
    assert Request(seconds=5.0, enough="p99").chunks(0.16) == 662
    assert Request(seconds=5.0, enough="p99", streams=4).chunks(0.16) == 166
    assert Request(mode="back-to-back", enough="p999").chunks(0.16) == 6636
    assert Request(mode="multi-stream", streams=8).chunks(0.16) == 662  # steps of the batch, not of a stream
    assert Request(seconds=200.0, enough="p90").chunks(0.16) == 1250  # more than enough stays
    with pytest.raises(RdError, match="--until-enough"):
        Request(enough="p95")


def test_an_offline_bundle_is_measured_with_whole_utterances_unless_a_window_is_asked_for():
    assert Request().for_kind("offline").mode == "utterances" and Request().for_kind("streaming").mode == "paced"
    assert Request(sliding_window=True).for_kind("offline").mode == "paced"
    assert Request().for_kind("offline").chunks(5.0) == 100 and Request(seconds=34.0).for_kind("offline").chunks(5) == 2
    assert Request().for_kind("offline").label == "whole utterances of 2, 5, 10 s, 1 thread, auto"
    for many in (Request(streams=2), Request(soak_s=60.0), Request(mode="multi-stream")):
        with pytest.raises(RdError, match="one at a time"):
            many.for_kind("offline")
