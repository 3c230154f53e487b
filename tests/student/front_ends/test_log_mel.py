"""The log-mel front end: Whisper's filters, torch's DFT, geometry, levels; batches and autocast change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import frames_for, samples_for
from reuse_distill.runtime.untrusted_input import from_dict, to_dict
from reuse_distill.student import ChunkContext, Student, StudentConfig, preset
from reuse_distill.student.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from reuse_distill.student.config import mel_stack
from reuse_distill.student.front_ends.log_mel import CENTRE, DECADES, FLOOR, LogMel, mel_filters
from reuse_distill.student.step import initial_state

PARAMETERS = 4_670_432  # of pocket and pocket-stream without heads
SHAPES = [(1, 0, 0), (1, 3, 2), (4, 8, 4), (3, 7, 5), (2, 9, 7)]


def speech_like(samples: int, *, seed: int = 0) -> torch.Tensor:
    """Tones of changing loudness, with noise [T] float32."""
    generator = np.random.default_rng(seed)
    time = np.arange(samples) / 16_000
    tones = sum(np.sin(2 * np.pi * hz * time + hz) / (1 + k) for k, hz in enumerate((130, 270, 1900, 3100, 6200)))
    wave = 0.1 * tones * (0.6 + 0.5 * np.sin(2 * np.pi * 3 * time)) + 1e-3 * generator.standard_normal(samples)
    return torch.from_numpy(wave.astype(np.float32))


@pytest.fixture(name="mel_config")
def _mel_config(small_config):
    def build(**changes) -> StudentConfig:
        return small_config(**{"front_end": "mel", "conv_layers": mel_stack(10, 16), **changes})

    return build


def test_filters_are_whispers() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = np.asarray(transformers.WhisperFeatureExtractor().mel_filters)  # (201, 80)
    assert np.abs(theirs[[0, 200]]).max() == 0, "the two bins that are left out have no weight"
    assert np.abs(mel_filters() - theirs[1:200].T).max() < 1e-9
    assert mel_filters().max() > 0.02


def test_power_is_that_of_torch_stft() -> None:
    wave = speech_like(16_000)
    spectrum = torch.stft(
        wave.double(), 400, 160, window=torch.hann_window(400, dtype=torch.float64), center=False, return_complex=True
    )
    power = torch.from_numpy(mel_filters()) @ spectrum.abs().square()[1:200]
    expected = (torch.log10(power + FLOOR) - CENTRE) / DECADES
    ours = LogMel()(wave[None])[0]
    assert ours.shape == expected.shape == (80, 98)
    assert float((ours - expected).abs().max()) < 2e-4, "a decade is 0.25"
    assert float(expected.std()) > 0.2


def test_log_mel_is_whispers_but_for_its_cut(tmp_path) -> None:
    """Where nothing is 8 decades below the loudest bin, which is Whisper's cut, and away from the reflected ends."""
    transformers = pytest.importorskip("transformers")
    wave = speech_like(16_000) + 0.05 * torch.from_numpy(np.random.default_rng(1).standard_normal(16_000)).float()
    extractor = transformers.WhisperFeatureExtractor()
    theirs = torch.from_numpy(np.asarray(extractor(wave.numpy(), sampling_rate=16_000)["input_features"][0]))
    log10_power = theirs * 4 - 4
    ours = LogMel()(wave[None])[0] * DECADES + CENTRE  # frame j starts at sample 160 j, theirs 200 samples before it
    shifted = LogMel()(torch.nn.functional.pad(wave, (200, 0))[None])[0] * DECADES + CENTRE
    assert ours.shape[1] == 98
    assert float((shifted[:, 4:95] - log10_power[:, 4:95]).abs().max()) < 1e-3


@settings(max_examples=40, deadline=None)
@given(st.integers(400, 5000))
def test_frames_are_counted_as_the_geometry_says(samples: int) -> None:
    config = preset("pocket-stream", width=16, heads=2, conv_layers=mel_stack(8, 16), layers=1, reuse_layers=())
    student = Student(config).eval().requires_grad_(False)
    raw, frames = student.frames(torch.zeros(1, samples))
    assert raw.shape == (1, 16, frames_for(samples))
    assert frames.shape == (1, frames_for(samples), 16)


def test_a_frame_sees_its_400_samples_and_640_before(mel_config, randomised, noise) -> None:
    student = randomised(mel_config())
    assert student.config.history_samples == 640
    wave, frame = noise(320 * 12 + 80), 7

    def change(at: int) -> float:
        other = wave.clone()
        other[at] += 0.5
        return float((student.frames(other[None])[1] - student.frames(wave[None])[1])[0, frame].abs().max())

    start = 320 * frame - 640
    # The first sample of a Hann window has no weight.
    assert change(start - 1) == change(start) == change(320 * frame + 400) == 0
    assert min(change(start + 2), change(320 * frame + 398)) > 0


def test_history_is_what_was_before_and_silence_at_the_start(mel_config, randomised, noise) -> None:
    student, wave = randomised(mel_config()), noise(samples_for(12))
    whole = student.frames(wave[None])[1]
    later = student.frames(wave[None, 320 * 4 :], history=wave[None, 320 * 4 - 640 : 320 * 4])[1]
    torch.testing.assert_close(later, whole[:, 4:], atol=1e-12, rtol=0)
    silence = torch.zeros(1, 640, dtype=wave.dtype)
    assert torch.equal(student.frames(wave[None], history=silence)[1], whole)


@pytest.mark.parametrize(("chunk", "left", "ahead"), SHAPES)
def test_every_chunking_is_the_offline_forward(
    chunk, left, ahead, mel_config, randomised, noise, streamed, largest_gap
) -> None:
    student = randomised(mel_config(lookahead_frames=ahead))
    context = ChunkContext(chunk, left)
    for tail in range(chunk):
        wave = noise(320 * (3 * chunk + left + tail) + 80 + (97 * tail) % 320, seed=tail)
        assert largest_gap(streamed(student, wave, context), student(wave[None], context=context)) <= 1e-10


def test_every_chunking_in_single_precision(mel_config, randomised, streamed, largest_gap) -> None:
    student, wave = randomised(mel_config(), dtype=torch.float32), speech_like(320 * 23 + 80)
    for context in (ChunkContext(1, 4), ChunkContext(4, 8), ChunkContext(8, 16)):
        assert largest_gap(streamed(student, wave, context), student(wave[None], context=context)) <= 1e-4


@pytest.mark.parametrize("padding", [0.7, float("nan")])
def test_a_padded_row_is_the_row_alone(padding, mel_config, randomised, noise) -> None:
    student, lengths = randomised(mel_config()), [6400, 3333, 400]
    waves = [noise(samples, seed=samples) for samples in lengths]
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True, padding_value=padding)
    together = student(batch, torch.tensor(lengths))
    for row, wave in enumerate(waves):
        alone = student(wave[None])
        for ours, theirs in zip(together.layers, alone.layers, strict=True):
            torch.testing.assert_close(ours[row : row + 1, : theirs.shape[1]], theirs, atol=1e-11, rtol=0)


def test_masked_frames_do_not_depend_on_the_audio(mel_config, randomised, noise) -> None:
    student, wave = randomised(mel_config()), noise(samples_for(20))[None]
    mask = torch.ones(1, 20, dtype=torch.bool)
    assert torch.equal(student(wave, mask=mask).features, student.mask_emb.expand(1, 20, 16))


def test_log_mel_stays_in_single_precision_under_autocast() -> None:
    wave, front = speech_like(8000)[None] * 1e-2, LogMel()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = front(wave)
        from_half = front(wave.bfloat16())
    assert inside.dtype == from_half.dtype == torch.float32
    assert torch.equal(inside, front(wave))


def test_a_training_step_in_bfloat16(mel_config) -> None:
    student = Student(mel_config()).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = student(speech_like(6400)[None], mask=torch.arange(19)[None] % 3 == 0)
        sum(x.square().mean() for x in output.projections).backward()
    assert [name for name, p in student.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_levels_are_far_from_both_ends() -> None:
    """Loud speech stays below 2; the same at -20 dB is half a unit lower, far above the floor of -1."""
    wave, front = speech_like(16_000), LogMel()
    loud, soft = front(wave[None] * 3), front(wave[None] * 0.3)
    assert float(loud.max()) < 2
    voiced = loud > 0
    torch.testing.assert_close((loud - soft)[voiced], torch.full_like(loud[voiced], 0.5), atol=2e-3, rtol=0)
    silence = front(torch.zeros(1, 400))
    torch.testing.assert_close(silence, torch.full_like(silence, -1), atol=1e-6, rtol=0)


def test_checkpoints_hold_no_fixed_weights(mel_config, tmp_path, noise) -> None:
    student = Student(mel_config()).eval()
    assert not any("log_mel" in name for name in student.state_dict())
    save_checkpoint(tmp_path / "student", student)
    again, wave = load_checkpoint(tmp_path / "student"), speech_like(6400)[None]
    assert torch.equal(again(wave).layers[-1], student(wave).layers[-1])


def test_configurations_without_the_field_have_convolutions() -> None:
    data = to_dict(preset("tiny"))
    del data["front_end"]
    assert from_dict(StudentConfig, data, where="here") == preset("tiny")


BAD = [
    ({"front_end": "mels"}, "front_end 'mels' is unknown"),
    ({"conv_norm": "group"}, "front_end 'mel' with conv_norm 'group'"),
    ({"conv_layers": ((192, 3, 1), (256, 3, 1))}, "over mel frames have stride 160 and receptive field 1040"),
    ({"conv_layers": ((192, 33, 1), (256, 3, 2))}, "receptive field 5840"),
    ({"conv_layers": ()}, "stride 160 and receptive field 400"),
    ({"front_end": "conv"}, "conv layers have stride 2 and receptive field 5 samples"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_values(changes: dict, message: str) -> None:
    with pytest.raises(RdError, match=message):
        preset("pocket-stream", **changes)


def test_pocket_presets() -> None:
    streaming, whole = preset("pocket-stream"), preset("pocket")
    assert streaming.streamable
    assert (streaming.context, whole.context) == (ChunkContext(8, 128), None)
    state = initial_state(streaming, streaming.context, batch=1, dtype=torch.float32)
    assert state.audio.shape == (1, 640)
    for config in (streaming, whole):
        with torch.device("meta"):
            sizes = {name: p.numel() for name, p in Student(config).named_parameters()}
        heads = sum(size for name, size in sizes.items() if name.startswith("proj_head"))
        assert (sum(sizes.values()) - heads, heads) == (PARAMETERS, 789_504)
        assert all(size % 32 == 0 for size in (config.width, config.ffn_width, *(c for c, _, _ in config.conv_layers)))
