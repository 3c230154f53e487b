"""Parity in the manifest is measured: on several lengths, layer by layer, through the runtime, with a floor."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from reuse_distill.export.parity.reference import reference_features, synthetic_clips
from reuse_distill.export.parity.verify import check, outside_in_words, stated_bound, within
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import samples_for
from reuse_distill.student import Student, save_checkpoint

MATRIX = [
    (name, mode, precision)
    for name, mode in (("shared", "offline"), ("shared", "window"), ("stream", "streaming"))
    for precision in ("fp32", "fp16", "int8")
]


@pytest.mark.parametrize(("name", "mode", "precision"), MATRIX)
def test_figures_of_the_manifest(name: str, mode: str, precision: str, workshop) -> None:
    """One row per layer and per clip, several lengths, everything consistent with the whole and within the bound."""
    parity = read_bundle(workshop.bundle(name, mode, precision)).manifest.parity
    assert [row["layer"] for row in parity["layers"]] == [1, 2, 3, 4]
    assert len({clip["samples"] for clip in parity["clips"]}) >= 3
    assert parity["measured"]["max_abs"] == max(clip["max_abs"] for clip in parity["clips"])
    assert parity["measured"]["min_cosine"] == min(clip["min_cosine"] for clip in parity["clips"])
    assert all(clip["reference_rms"] > 0.1 for clip in parity["clips"])
    assert within(parity)
    assert parity["measured"]["max_abs"] > 0
    if precision == "fp32":
        assert parity["bound"] == {"max_abs": 1e-4}
        assert all(row["max_abs"] <= 1e-4 for row in parity["layers"])
    else:
        assert all(row["mean_cosine"] > 0.98 for row in parity["layers"])
        assert len({row["max_abs"] for row in parity["layers"]}) == 4


@pytest.mark.parametrize(("name", "mode"), [("shared", "offline"), ("shared", "window"), ("stream", "streaming")])
def test_the_figures_can_be_measured_again(name: str, mode: str, workshop, spec_of) -> None:
    """Whoever runs the bundle on the same signals finds the manifest's own numbers."""
    folder = workshop.bundle(name, mode)
    encoder, clips = Encoder.load(folder), read_bundle(folder).manifest.parity["clips"]
    for wave, row in zip(synthetic_clips(), clips, strict=True):
        found = difference(encoder.extract(wave), reference_features(workshop.student(name), spec_of(mode), wave))
        assert (len(wave), found.max_abs) == (
            row["samples"],
            pytest.approx(row["max_abs"], rel=0.5, abs=2e-6),
        )


@pytest.mark.parametrize("samples", [400, 719, 720, 1000, 16_000, 48_123, 160_000])
@pytest.mark.parametrize("name", ["shared", "renormalised"])
def test_offline_equals_torch_on_every_length(name: str, samples: int, workshop, noise) -> None:
    wave, student = noise(samples, seed=samples), workshop.student(name)
    with torch.no_grad():
        wanted = np.concatenate([p.numpy() for p in student(torch.from_numpy(wave)[None]).projections])
    assert difference(Encoder.load(workshop.bundle(name, "offline")).extract(wave), wanted).max_abs <= 1e-4


@pytest.mark.parametrize(("name", "mode", "precision"), MATRIX)
def test_selftest_passes_through_the_runtime(name: str, mode: str, precision: str, workshop) -> None:
    result = Encoder.load(workshop.bundle(name, mode, precision)).selftest()
    assert result.passed, result
    assert result.difference.frames >= 4 * 120
    stated = read_bundle(workshop.bundle(name, mode, precision)).manifest.parity["selftest"]
    assert stated["max_abs"] >= 0.999 * result.difference.max_abs, "the same recording, and for streams its cut ends"
    assert stated["mean_cosine"] <= result.difference.mean_cosine + 1e-6


def test_weights_that_differ_change_the_figures(workshop, spec_of) -> None:
    """The check has teeth: another student's features are far outside the bound."""
    wave = synthetic_clips()[1]
    found = Encoder.load(workshop.bundle("shared", "offline")).extract(wave)
    other = reference_features(workshop.student("renormalised"), spec_of("offline"), wave)
    measured = difference(found, other)
    parity = {"measured": vars(measured), "bound": {"max_abs": 1e-4}}
    assert not within(parity)
    with pytest.raises(RdError, match=r"parity failed: fp32 features differ by \d"):
        check(parity, precision="fp32")


def test_nan_is_within_no_bound() -> None:
    for bound in ({"max_abs": 1e9}, {"mean_cosine": -1.0}):
        measured = {"max_abs": math.nan, "mean_cosine": math.nan, "min_cosine": math.nan}
        assert not within({"measured": measured, "bound": bound})


def test_the_recording_in_the_bundle_counts_too() -> None:
    """A bundle that is good enough on average but not on its own recording would fail its selftest on every device."""
    good = {"max_abs": 0.5, "mean_cosine": 0.995, "min_cosine": 0.9}
    parity = {"measured": good, "selftest": {**good, "mean_cosine": 0.985}, "bound": {"mean_cosine": 0.99}}
    assert not within(parity)
    with pytest.raises(
        RdError, match=r"cosine 0\.9850 on the bundle's own recording and its cut ends, the bound is 0\.99"
    ):
        check(parity, precision="int8")
    assert within({**parity, "selftest": good})
    neither = {**parity, "measured": {**good, "mean_cosine": 0.98}}
    with pytest.raises(RdError, match=r"cosine 0\.9800 on the recordings that check, the bound is 0\.99"):
        check(neither, precision="int8")


@pytest.mark.parametrize(
    ("precision", "remedy"),
    [
        (
            "int8",
            "calibrate on more and more varied speech (--calibration), as loud as that of users, or lower --min-cosine "
            "knowingly",
        ),
        ("palette-4", "take a --precision with more bits, or lower --min-cosine knowingly"),
        ("int8-dynamic", "take a --precision with more bits, or lower --min-cosine knowingly"),
        ("bf16", "take a --precision with more bits"),
    ],
)
def test_the_remedy_is_one_that_there_is(precision: str, remedy: str) -> None:
    """Palettes are not calibrated, and --min-cosine is refused for bfloat16."""
    measured = {"max_abs": 0.5, "mean_cosine": 0.9, "min_cosine": 0.5}
    with pytest.raises(RdError) as error:
        check({"measured": measured, "bound": {"mean_cosine": 0.99}}, precision=precision)
    assert error.value.hint == remedy


def test_decisions_of_a_head_have_a_bound_of_their_own() -> None:
    """The features are fine: neither the line on the way nor the remedy speaks of them."""
    good = {"max_abs": 0.1, "mean_cosine": 0.9998, "min_cosine": 0.99}
    units = {"measured": {"agreement": 0.98}, "selftest": {"agreement": 1.0}, "bound": {"agreement": 0.99}}
    parity = {"measured": good, "bound": {"mean_cosine": 0.99}, "heads": {"units": units}}
    words = "head 'units': agreement 0.98 on the recordings that check, the bound is 0.99"
    assert outside_in_words(parity) == words
    with pytest.raises(RdError, match=words) as error:
        check(parity, precision="int8-dynamic")
    assert error.value.hint == "take a --precision with more bits, or lower --min-agreement knowingly"


def test_bounds_that_are_stated() -> None:
    reference = np.array([[[1.0, -4.0]]], np.float32)
    assert stated_bound("fp32", reference, None) == {"max_abs": 1e-4}
    assert stated_bound("fp16", reference, None) == {"max_abs": pytest.approx(0.02)}
    assert stated_bound("int8", reference, None) == {"mean_cosine": 0.99}
    assert stated_bound("int8", reference, 0.9) == {"mean_cosine": 0.9}


def test_a_student_that_gives_nothing_cannot_be_compared(run_export, configs, tmp_path: Path) -> None:
    """The reference floor: a student whose features are all but zero would agree with any garbage; not converted."""
    student = Student(configs["shared"])
    with torch.no_grad():
        for head in student.proj_head or ():
            head.lin_proj.weight.zero_()
            head.lin_proj.bias.fill_(1e-5)
    save_checkpoint(tmp_path / "checkpoint", student, provenance={}, training={})
    run = run_export(tmp_path / "checkpoint", "--output", tmp_path / "bundle")
    assert run.status == 2
    assert "empty or all but zero: nothing can be compared" in run.err and "converting" not in run.err
    assert not (tmp_path / "bundle").exists()


def test_selftest_notices_another_reference(workshop, rehash, tmp_path: Path) -> None:
    copy = shutil.copytree(workshop.bundle("shared", "offline"), tmp_path / "bundle")
    arrays = dict(np.load(copy / "selftest.npz"))
    assert len(arrays["wave"]) == samples_for(149)
    arrays["features"][2, 70, 5] += np.float32(2e-4)
    np.savez(copy / "selftest.npz", **arrays)
    rehash(copy)
    assert not Encoder.load(copy).selftest().passed
