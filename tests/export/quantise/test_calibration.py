"""Calibration audio: spread over recordings and voices, loud stretches, nothing silent, a quarter held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.quantise.calibration import CalibrationSet, EveryFeed, feeds, read_calibration
from reuse_distill.runtime.audio.recordings import find_recordings
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import frames_for, samples_for


def write(folder: Path, seconds: list[float], *, gain: float = 0.1) -> Path:
    rng = np.random.default_rng(0)
    for index, length in enumerate(seconds):
        soundfile.write(folder / f"{index:03d}.wav", gain * rng.standard_normal(int(16_000 * length)), 16_000)
    return folder


def set_of(clips: list[np.ndarray]) -> CalibrationSet:
    return CalibrationSet(tuple(clips), len(clips), None, "", ())


def test_three_quarters_calibrate_and_the_rest_checks(demo_speech: Path) -> None:
    found = read_calibration(demo_speech / "manifest.csv")
    recordings = find_recordings(demo_speech / "manifest.csv")
    assert list(found.held_out) == recordings[3::4]
    assert (found.files, len(found.clips), found.speakers) == (24, 24, 8)
    assert found.seconds == pytest.approx(sum(len(c) for c in found.clips) / 16_000)
    assert found.describe()["sha256"] == read_calibration(demo_speech / "manifest.csv").sha256
    assert read_calibration(demo_speech).speakers is None, "a folder does not name its speakers"
    assert read_calibration(demo_speech).describe()["speakers"] == "unknown"


def test_other_audio_is_another_hash(tmp_path: Path, demo_speech: Path) -> None:
    a = read_calibration(write(tmp_path, [6, 6, 6, 6, 6]))
    assert a.sha256 != read_calibration(demo_speech).sha256
    assert a.sha256 != read_calibration(write(tmp_path, [6, 6, 6, 6, 6], gain=0.2)).sha256


def test_at_most_32_clips_of_6_seconds_spread_over_the_list(tmp_path: Path) -> None:
    found = read_calibration(write(tmp_path, [7.0] + [0.9] * 79))
    assert len(found.clips) == 32
    assert len(found.clips[0]) == 6 * 16_000
    assert len(found.held_out) == 20


def test_the_loudest_stretch_is_taken(tmp_path: Path) -> None:
    quiet_then_loud = np.concatenate([np.full(16_000 * 20, 0.001), np.full(16_000 * 7, 0.5)])
    write(tmp_path, [7.0] * 5)
    soundfile.write(tmp_path / "000.wav", quiet_then_loud, 16_000)
    found = read_calibration(tmp_path)
    assert {len(clip) for clip in found.clips} == {16_000 * 6}
    assert float(np.abs(found.clips[0]).min()) > 0.4
    assert read_calibration(tmp_path / "000.wav").held_out == ()


def test_silent_and_short_recordings_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, [12.0, 0.01, 0.02])
    soundfile.write(tmp_path / "001.wav", np.zeros(16_000 * 30), 16_000)
    found = read_calibration(tmp_path, accept_narrow=True)
    assert sum(map(len, found.clips)) == 16_000 * 12
    with pytest.raises(RdError, match=r"12\.0 s that are not silent, 20 s are needed"):
        read_calibration(tmp_path)


# --- what the graph is fed --------------------------------------------------------------------------------------------


def test_offline_feeds(workshop, spec_of, noise) -> None:
    spec, clips = spec_of("offline"), [noise(5000), noise(7000)]
    fed = list(feeds(capture(workshop.student("shared"), spec), spec, set_of(clips)))
    assert [f["wave"].shape for f in fed] == [(1, 5000), (1, 7000)]


def test_window_feeds_are_whole_windows_with_true_validity(workshop, spec_of, noise) -> None:
    spec = spec_of("window")
    captured = capture(workshop.student("shared"), spec)
    long, short = noise(samples_for(72) * 2 + 5000), noise(samples_for(30))
    fed = list(feeds(captured, spec, set_of([long, short])))
    assert [int(f["frame_valid"].sum()) for f in fed] == [72, 72, 30]
    assert all(f["wave"].shape == (1, samples_for(72)) for f in fed)
    assert not fed[-1]["wave"][0, len(short) :].any()


def test_step_feeds_have_the_states_of_a_real_stream(workshop, spec_of, noise) -> None:
    spec = spec_of("streaming", batch=2)
    captured = capture(workshop.student("stream"), spec)
    wave = noise(samples_for(40))
    fed = list(feeds(captured, spec, set_of([wave])))
    assert len(fed) == 4, "every third of ten steps"
    assert list(fed[0]) == captured.input_names
    assert not any(fed[0][s.input].any() for s in captured.states), "starts with nothing heard"
    second = fed[2]
    assert second["valid"].tolist() == [[1.0] * 12] * 2, "24 frames have filled 12 slots; the first R are not frames"
    assert np.abs(second["values_02"]).min(axis=(1, 3)).max() > 0
    np.testing.assert_array_equal(second["samples"][0], wave[320 * 24 : 320 * 24 + samples_for(4)])
    assert frames_for(len(wave)) == 40


def test_a_long_clip_feeds_every_twelfth_step(workshop, spec_of, noise) -> None:
    captured = capture(workshop.student("stream"), spec_of("streaming", batch=1))
    fed = list(feeds(captured, spec_of("streaming", batch=1), set_of([noise(samples_for(4 * 50))])))
    assert len(fed) == 5, "steps 0, 12, 24, 36 and 48 of 50"
    assert fed[1]["valid"].all() and fed[1]["samples"].any()


def test_every_step_of_a_clip_is_a_row_of_one_batch(workshop, spec_of, noise, monkeypatch) -> None:
    """In the order of the stream, with the states that stepping one by one gives, as often as they are asked for."""
    one, any_number = spec_of("streaming", batch=1), spec_of("streaming")
    calibration = set_of([noise(samples_for(4 * 5)), noise(samples_for(4 * 3))])
    singles = list(EveryFeed(capture(workshop.student("stream"), one), one, calibration))
    assert [len(fed["samples"]) for fed in singles] == [1] * 8, "the number of streams is fixed"
    rows = EveryFeed(capture(workshop.student("stream"), any_number), any_number, calibration)
    for _ in range(2):
        clips = list(rows)
        assert [len(fed["samples"]) for fed in clips] == [5, 3]
        for name in clips[0]:
            joined = np.concatenate([fed[name] for fed in singles])
            np.testing.assert_allclose(np.concatenate([fed[name] for fed in clips]), joined, atol=1e-6)
    size = sum(value.nbytes for value in singles[0].values())
    monkeypatch.setattr("reuse_distill.export.quantise.calibration.MOST_BYTES", 2 * size)
    assert [len(fed["samples"]) for fed in rows] == [2, 2, 1, 2, 1]


def test_utterances_are_fed_as_they_are(workshop, spec_of, noise) -> None:
    spec = spec_of("offline")
    rows = EveryFeed(capture(workshop.student("shared"), spec), spec, set_of([noise(5000), noise(7000)]))
    assert [fed["wave"].shape for fed in rows] == [(1, 5000), (1, 7000)]
