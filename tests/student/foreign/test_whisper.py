"""Whisper's encoder: log-mel and features are transformers' own, for audio of any length up to its window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import frames_for
from reuse_distill.student.foreign import read_foreign, student_of

BOUND = 1e-4


def make_whisper(folder: Path, *, bands: int = 80, frames: int = 100, whole: bool = False) -> Any:
    """A tiny Whisper (of 2 s where ``frames`` is 100) and its preprocessor in ``folder``."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    config = transformers.WhisperConfig(
        d_model=48, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=96, decoder_layers=1, vocab_size=64,
        decoder_attention_heads=4, decoder_ffn_dim=96, num_mel_bins=bands, max_source_positions=frames,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    kind = transformers.WhisperForConditionalGeneration if whole else transformers.WhisperModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = kind(config).eval()
        with torch.no_grad():
            for key, value in model.named_parameters():
                if ".layers." in key and value.dim() == 2:
                    value.mul_(6)
    model.save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor(feature_size=bands, chunk_length=frames // 50)
    extractor.save_pretrained(folder)
    return model, extractor


@pytest.mark.parametrize(("bands", "whole"), [(80, False), (128, True)])
def test_layers_are_those_of_transformers(tmp_path: Path, bands: int, whole: bool) -> None:
    model, extractor = make_whisper(tmp_path, bands=bands, whole=whole)
    encoder = model.get_encoder() if whole else model.encoder
    checkpoint = read_foreign(tmp_path)
    student = student_of(checkpoint)
    assert not any(name.startswith(("decoder", "proj_out")) for name in checkpoint.weights)
    rng = np.random.default_rng(0)
    for samples in (400, 15_999, 32_000):
        wave = (0.1 * rng.standard_normal(samples)).astype(np.float32)
        wave[samples // 2 :] *= 1e-3
        mel = extractor(wave, sampling_rate=16_000, return_tensors="pt").input_features
        with torch.no_grad():
            theirs = encoder(mel, output_hidden_states=True)
            ours = student(torch.from_numpy(wave)[None], with_maps=True)
        frames = frames_for(samples)
        assert (student.feature_extractor.log_mel(_padded(wave, 32_000)) - mel).abs().max() < 1e-3
        assert ours.layers[-1].shape[1] == frames and len(ours.maps) == 2
        assert (ours.layers[-1] - theirs.last_hidden_state[:, :frames]).abs().max() < BOUND
        assert (ours.layers[0] - theirs.hidden_states[1][:, :frames]).abs().max() < BOUND


def test_longer_audio_and_another_preprocessor_are_refused(tmp_path: Path) -> None:
    make_whisper(tmp_path)
    student = student_of(read_foreign(tmp_path))
    with pytest.raises(RdError, match="32001 samples, Whisper sees 400 to 32000 at once"):
        student(torch.zeros(1, 32_001))
    with pytest.raises(RdError, match="no masked and no chunked forward"):
        student(torch.zeros(1, 1_000), context=(8, 8))
    file = tmp_path / "preprocessor_config.json"
    file.write_text(file.read_text().replace('"hop_length": 160', '"hop_length": 200'))
    with pytest.raises(RdError, match=r"hop_length of preprocessor_config\.json is 200, only 160 is supported"):
        student_of(read_foreign(tmp_path))


def _padded(wave: np.ndarray, samples: int) -> torch.Tensor:
    return torch.from_numpy(np.pad(wave, (0, samples - len(wave))))[None]
