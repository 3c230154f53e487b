"""Sliding windows: the static bundle equals torch's windows, and the drift that it states is what others will see."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from reuse_distill.export.capture.sliding_window import CapturedWindow, calibrated, drift, norm_of, sliding, windows
from reuse_distill.export.parity.reference import read_clips
from reuse_distill.export.spec import WindowContext
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.audio.recordings import find_recordings
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.geometry import samples_for
from reuse_distill.student import Student
from reuse_distill.student.front_ends.frontend import FrozenTimeNorm

ALL = (1, 2, 3, 4)
WINDOW = WindowContext(left_frames=40, chunk_frames=8, right_frames=24)
# How far the mean frame cosine on other recordings may be below or above the drift that the manifest states: it was
# measured on 8 s of two recordings, and recordings of 3 s differ from each other by this much (see docs/export.md).
DRIFT_NOISE = 0.05


def mean_cosine(found: list) -> float:
    return sum(d.mean_cosine * d.frames for d in found) / sum(d.frames for d in found)


def full(student: Student, wave: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return student(torch.from_numpy(wave)[None]).projections[-1].numpy()


# --- where windows lie ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 24, 65, 72, 100])
@pytest.mark.parametrize("extra", [0, 319])
def test_windows_cover_every_frame_once(frames: int, extra: int, noise) -> None:
    wave = noise(samples_for(frames) + extra, seed=frames)
    placed = list(windows(wave, WINDOW))
    assert sum(p.kept for p in placed) == frames
    assert [p.kept for p in placed[:-1]] == [8] * (len(placed) - 1)
    for number, p in enumerate(placed):
        index = np.arange(72) + 8 * number - 40
        np.testing.assert_array_equal(p.valid, (index >= 0) & (index < frames))
        for i in np.flatnonzero(p.valid):
            t = int(index[i])
            np.testing.assert_array_equal(p.wave[320 * i : 320 * i + 400], wave[320 * t : 320 * t + 400])
        first, last = np.flatnonzero(p.valid)[[0, -1]]
        assert not p.wave[: 320 * first].any(), "zeros before the audio"
        assert not p.wave[320 * last + 400 :].any(), "zeros after the last frame, whatever samples there are"


def test_what_is_not_valid_does_not_matter(workshop, noise) -> None:
    """frame_valid edges: samples of frames that do not exist change nothing, neither statistics nor attention."""
    module = CapturedWindow(workshop.student("shared"), WINDOW, ALL, "heads")
    wave, valid = torch.from_numpy(noise(samples_for(72), seed=2))[None].clone(), torch.ones(1, 72)
    valid[:, :40], valid[:, 60:] = 0, 0
    other = wave.clone()
    other[:, : 320 * 40], other[:, 320 * 60 + 80 :] = 0.7, -0.3
    with torch.no_grad():
        a, b = module(wave, valid), module(other, valid)
    assert torch.equal(a, b) or float((a - b).abs().max()) < 1e-5
    with torch.no_grad():
        seen = module(other, torch.ones(1, 72))
    assert float((a - seen).abs().max()) > 0.1, "with frame_valid 1 the same samples do matter"


def test_a_window_that_holds_everything_is_the_full_utterance(workshop, noise) -> None:
    """No drift at all where left and right reach both ends: the approximation is the context alone."""
    wave, student = noise(samples_for(30), seed=4), workshop.student("shared")
    found = sliding(CapturedWindow(student, WindowContext(40, 8, 40), (4,), "heads"), wave)
    assert difference(found, full(student, wave)).max_abs < 1e-4


# --- the bundle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 8, 20, 41, 97])
def test_the_bundle_equals_torch_windows(frames: int, workshop, noise) -> None:
    encoder = Encoder.load(workshop.bundle("shared", "window"))
    wave = noise(samples_for(frames) + 123, seed=frames)
    wanted = sliding(CapturedWindow(workshop.student("shared"), WINDOW, ALL, "heads"), wave)
    assert difference(encoder.extract(wave), wanted).max_abs <= 1e-4
    stream = encoder.stream()
    parts = [piece for start in range(0, len(wave), 777) for piece in stream.push(wave[start : start + 777])]
    assert np.array_equal(encoder.join([*parts, *stream.finish()]), encoder.extract(wave))


def test_shapes_are_static(workshop) -> None:
    manifest = read_bundle(workshop.bundle("shared", "window")).manifest
    assert [(p.name, p.shape) for p in manifest.inputs] == [
        ("wave", (1, 320 * 72 + 80)),
        ("frame_valid", (1, 72)),
    ]
    assert manifest.outputs[0].shape == (1, 4, 8, 24)
    assert manifest.approximate


def test_drift_rows(workshop) -> None:
    """Left and right context each have a curve that includes the exported point and moves with the context."""
    found = read_bundle(workshop.bundle("shared", "window")).manifest.drift
    assert [row["left_frames"] for row in found["left"]] == [0, 25, 40, 50, 100, 200]
    assert [row["right_frames"] for row in found["right"]] == [0, 8, 16, 24, 32, 64, 96]
    exported = found["exported"]
    assert (exported["left_frames"], exported["right_frames"], exported["norm"]) == (40, 24, "window")
    for rows, name in ((found["left"], "left_frames"), (found["right"], "right_frames")):
        assert len({round(row["mean_cosine"], 6) for row in rows}) > 3, "the curve is measured point by point"
        assert next(row for row in rows if row[name] == exported[name]) == exported
        assert rows[-1]["mean_cosine"] > rows[0]["mean_cosine"]
    assert found["right"][-1]["mean_cosine"] - found["right"][0]["mean_cosine"] > 0.01
    assert 0 < exported["mean_cosine"] < 1
    assert found["seconds"] > 1


def test_other_recordings_drift_as_the_manifest_says(workshop, demo_speech: Path, run_export, tmp_path: Path, request):
    """The figure in the manifest, measured on two recordings, holds on others within the stated noise."""
    check, output = tmp_path / "check.csv", tmp_path / "bundle"
    shared = request.getfixturevalue("shared_speech")
    folder = shared / "libri_transcribed" if shared else demo_speech
    recordings = find_recordings(folder / "manifest.csv")
    stated_on, others = recordings[:: len(recordings) // 6], recordings[2 :: len(recordings) // 6]
    check.write_text("file\n" + "\n".join(str(r.path) for r in stated_on) + "\n")
    words = (
        "--mode",
        "window",
        "--layers",
        "all",
        "--left",
        "40",
        "--chunk",
        "8",
        "--right",
        "24",
        "--check",
        check,
    )
    run = run_export(workshop.checkpoint("shared"), *words, "--output", output)
    assert run.status == 0, run.err
    encoder, student = Encoder.load(output), workshop.student("shared")
    stated = encoder.manifest.drift["exported"]["mean_cosine"]
    wave = np.concatenate(read_clips(others))[: 16_000 * 60]
    seen = [difference(encoder.extract(wave)[-1:], full(student, wave))]
    print("drift stated", stated, "seen", mean_cosine(seen), [round(d.mean_cosine, 4) for d in seen])
    assert abs(mean_cosine(seen) - stated) <= DRIFT_NOISE


# --- calibrated statistics --------------------------------------------------------------------------------------------


def test_calibrated_statistics_are_the_mean_of_the_clips(workshop, noise) -> None:
    student, clips = workshop.student("shared"), [noise(8000, seed=1), 3 * noise(9000, seed=2)]
    ready = calibrated(student, clips)
    norm = ready.feature_extractor.conv_layers[0][2]
    assert isinstance(norm, FrozenTimeNorm)
    assert norm_of(student) == "window"
    assert norm_of(ready) == "calibrated"
    conv, old = student.feature_extractor.conv_layers[0][0], student.feature_extractor.conv_layers[0][2]
    outs = [conv(torch.from_numpy(clip)[None, None]) for clip in clips]
    mean = torch.stack([x.mean(-1) for x in outs]).mean(0)
    variance = torch.stack([x.var(-1, unbiased=False) for x in outs]).mean(0)
    x = torch.randn(1, 8, 50, generator=torch.Generator().manual_seed(0))
    wanted = (x - mean[..., None]) / (variance[..., None] + old.eps).sqrt()
    torch.testing.assert_close(norm(x), wanted * old.weight[:, None] + old.bias[:, None], atol=1e-4, rtol=1e-4)
    single = calibrated(student, clips[:1])
    wave = torch.from_numpy(clips[0])[None]
    assert float((single(wave).layers[-1] - student(wave).layers[-1]).abs().max()) < 1e-3, "its own statistics"


def test_a_per_frame_norm_has_nothing_to_calibrate(workshop, noise) -> None:
    ready = calibrated(workshop.student("stream"), [noise(8000)])
    assert norm_of(ready) == "per frame"


def test_calibrated_window_bundle(workshop, demo_speech: Path) -> None:
    options = ("--window-norm", "calibrated", "--calibration", str(workshop.speech))
    manifest = read_bundle(workshop.bundle("shared", "window", "fp32", *options)).manifest
    assert manifest.drift["exported"]["norm"] == "calibrated"
    assert manifest.drift["other_norm"]["norm"] == "window"
    assert manifest.drift["exported"]["mean_cosine"] != manifest.drift["other_norm"]["mean_cosine"]
    assert manifest.parity["measured"]["max_abs"] <= 1e-4
    assert Encoder.load(workshop.bundle("shared", "window", "fp32", *options)).selftest().passed


def test_drift_of_a_window_that_holds_everything_is_none(workshop, noise) -> None:
    student = workshop.student("shared")
    found = drift(student, student, None, WindowContext(40, 8, 40), [noise(samples_for(20))], "heads")
    assert found["exported"]["mean_cosine"] > 1 - 1e-6
    assert found["other_norm"] is None
    hidden = dataclasses.replace(WINDOW, right_frames=0)
    assert drift(student, student, None, hidden, [noise(samples_for(20))], "hidden")["exported"]["mean_cosine"] < 0.999
