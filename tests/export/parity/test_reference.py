"""The reference: torch's features, the recording in the bundle, the clips that are checked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.export.parity.reference import (
    read_clips,
    reference_features,
    reference_layers,
    selftest_arrays,
    synthetic_clips,
    write_selftest,
)
from reuse_distill.export.spec import Streaming
from reuse_distill.runtime.audio.recordings import find_recordings
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import frames_for, samples_for


def test_exported_layers_come_in_the_order_asked_for(workshop, spec_of, noise) -> None:
    student, wave = workshop.student("shared"), noise(9000)
    with torch.no_grad():
        output = student(torch.from_numpy(wave)[None])
    for features, values in (("heads", output.projections), ("hidden", output.layers)):
        found = reference_features(student, spec_of("offline", layers=(3, 1), features=features), wave)
        np.testing.assert_array_equal(found, np.concatenate([values[2].numpy(), values[0].numpy()]))


def test_the_mode_decides_what_a_frame_may_see(workshop, spec_of, noise) -> None:
    student, wave = workshop.student("stream"), noise(samples_for(60))
    found = {mode: reference_features(student, spec_of(mode), wave) for mode in ("offline", "window", "streaming")}
    assert {x.shape for x in found.values()} == {(4, 60, 24)}
    for a, b in (("offline", "window"), ("window", "streaming"), ("offline", "streaming")):
        assert np.abs(found[a] - found[b]).max() > 0.01
    for mode in found:
        layers = reference_layers(student, spec_of(mode), wave)
        assert [x.shape for x in layers] == [(60, 32)] * 4
        hidden = reference_features(student, spec_of(mode, features="hidden"), wave)
        np.testing.assert_allclose(np.stack(layers), hidden, atol=1e-6)


def test_selftest_arrays(workshop, spec_of, noise, tmp_path: Path) -> None:
    wave = noise(100_000)
    offline = selftest_arrays(workshop.student("shared"), spec_of("offline"), wave)
    assert set(offline) == {"wave", "features"}
    assert (len(offline["wave"]), offline["features"].shape) == (samples_for(149), (4, 149, 24))
    arrays = selftest_arrays(workshop.student("stream"), spec_of("streaming"), wave)
    assert arrays["tail_frames"].tolist() == [1, 2, 3, 146, 147, 148, 149]
    assert arrays["tail_features"].shape == (7, 4, 4 + 4 + 4, 24)
    assert not arrays["tail_features"][1, :, :-2].any() and arrays["tail_features"][1, :, -2:].any()
    write_selftest(tmp_path / "selftest.npz", arrays)
    with np.load(tmp_path / "selftest.npz", allow_pickle=False) as stored:
        for name, value in arrays.items():
            np.testing.assert_array_equal(stored[name], value)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_selftest_of_a_recording_shorter_than_a_chunk(frames: int, workshop, spec_of, noise) -> None:
    arrays = selftest_arrays(workshop.student("stream"), spec_of("streaming"), noise(samples_for(frames)))
    lengths = arrays["tail_frames"].tolist()
    assert lengths == list(range(1, frames + 1))
    assert arrays["tail_features"].shape[2] == max(1, frames - 3)


def test_clips_are_spread_resampled_and_cut(demo_speech: Path, tmp_path: Path) -> None:
    recordings = find_recordings(demo_speech)
    assert len(read_clips(recordings)) == 6
    long = np.random.default_rng(0).normal(0, 0.1, (30 * 8000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", long, 8000)
    (clip,) = read_clips(find_recordings(tmp_path / "long.wav"))
    assert clip.dtype == np.float32
    assert clip.shape == (12 * 16_000,)
    soundfile.write(tmp_path / "short.wav", long[:100], 8000)
    with pytest.raises(RdError, match="long enough for a frame"):
        read_clips(find_recordings(tmp_path / "short.wav"))


def test_synthetic_clips_are_the_same_every_time_and_of_three_lengths() -> None:
    first, second = synthetic_clips(), synthetic_clips()
    assert [frames_for(len(clip)) for clip in first] == [1, 61, 149]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(np.sqrt(np.square(clip).mean()) > 1e-3 for clip in first)


def test_context_of_the_spec_is_what_counts(workshop, spec_of, noise) -> None:
    from reuse_distill.student import ChunkContext

    student, wave, spec = workshop.student("stream"), noise(samples_for(40)), spec_of("streaming")
    wider = dataclasses.replace(spec, mode=Streaming(ChunkContext(4, 20)))
    assert np.abs(reference_features(student, spec, wave) - reference_features(student, wider, wave)).max() > 1e-3
