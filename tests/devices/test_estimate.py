"""The roofline by hand."""

from __future__ import annotations

import pytest
from reuse_distill.devices.device_profiles import find_profile
from reuse_distill.devices.estimate import EFFICIENCY, Rates, Work, estimate, rates_of, work_of
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.errors import RdError


def test_the_band_spans_the_efficiencies_of_the_longer_leg():
    work = Work(2e9, 20e6, "manifest", steps_per_s=6.25)
    made = estimate(work, Rates(20e9, 10e9, "made"))
    assert made.compute_rtf == pytest.approx(0.1) and made.memory_rtf == pytest.approx(0.0125)
    assert made.rtf_low == pytest.approx(0.1 / EFFICIENCY[1]) and made.rtf_high == pytest.approx(0.1 / EFFICIENCY[0])
    assert made.bound_by == "computing"
    low, high = made.step_ms()
    assert (low, high) == (pytest.approx(160 * made.rtf_low), pytest.approx(160 * made.rtf_high))
    slow_memory = estimate(work, Rates(20e9, 1e9, "made"))
    assert slow_memory.bound_by == "memory" and slow_memory.rtf_high == pytest.approx(0.125 / EFFICIENCY[0])


def test_a_rate_of_another_precision_widens_the_band_downwards_only():
    work = Work(2e9, 20e6, "manifest", steps_per_s=6.25)
    plain, wide = (estimate(work, Rates(20e9, 10e9, "made", gain)) for gain in (1.0, 4.0))
    assert wide.rtf_low == pytest.approx(plain.rtf_low / 4) and wide.rtf_high == plain.rtf_high


def test_what_is_missing_is_unmeasured_and_not_guessed():
    for work, rates in (
        (Work(None, 1e6, "x", 6.25), Rates(1e9, 1e9, "x")),
        (Work(1e9, 1e6, "x", 6.25), Rates(None, 1e9, "x")),
    ):
        made = estimate(work, rates)
        assert (
            made.rtf_low is None and made.rtf_high is None and made.step_ms() is None and made.bound_by == "unmeasured"
        )
    assert estimate(Work(1e9, 1e6, "x", None), Rates(1e9, None, "x")).memory_rtf is None


def test_profile_rates_are_clock_times_width_times_threads():
    pi = find_profile("raspberry-pi-5")
    assert rates_of(pi, precision="fp32", target="onnx", threads=1).macs_per_s == pytest.approx(2.4e9 * 8)
    assert rates_of(pi, precision="int8", target="onnx", threads=4).macs_per_s == pytest.approx(2.4e9 * 32 * 4)
    assert rates_of(find_profile("jetson-orin-nano"), precision="fp16", target="tensorrt", threads=1).macs_per_s is None
    with pytest.raises(RdError, match="has 4 cores"):
        rates_of(pi, precision="fp32", target="onnx", threads=5)


def test_work_comes_from_the_manifest_and_the_artifact_stands_for_the_weights(make_bundle):
    told = work_of(read_bundle(make_bundle(source={"macs_per_second": 10, "weight_bytes": 5}, name="t")).manifest)
    assert (told.macs_per_s, told.weight_bytes, told.weight_origin, told.steps_per_s) == (
        10,
        5,
        "manifest",
        25,
    )
    silent = read_bundle(make_bundle(name="s")).manifest
    assert work_of(silent).weight_bytes == silent.files["model.onnx"].size_bytes
    assert work_of(silent).macs_per_s is None


@pytest.mark.parametrize("value", [0, -1, "many", float("inf"), True])
def test_unusable_numbers_in_a_manifest_are_refused(make_bundle, value):
    from dataclasses import replace

    manifest = read_bundle(make_bundle(name="bad")).manifest
    with pytest.raises(RdError, match="macs_per_second"):
        work_of(replace(manifest, source={"macs_per_second": value}))
