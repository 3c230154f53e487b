"""Whisper as a teacher: transformers' own log-mel and layers, on the students' frames."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.distill.teachers.whisper_teacher import PlacedMel, aligned_log_mel, mel_filters
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import frames_for
from safetensors.torch import load_file, save_file
from transformers.models.whisper.modeling_whisper import WhisperModel

SHARED = Path(__file__).resolve().parents[3] / "shared" / "teachers" / "whisper-base"
SMALL = {
    "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "vocab_size": 20,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 1, "decoder_start_token_id": 1,
}  # fmt: skip


def made(**changes) -> WhisperModel:
    torch.manual_seed(3)
    return WhisperModel(transformers.WhisperConfig(**{**SMALL, **changes})).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whisper") / "model"
    made().save_pretrained(path)
    return path


def encoder_only(folder: Path, target: Path) -> Path:
    target.mkdir()
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    weights = load_file(folder / "model.safetensors")
    kept = {f"model.{name}": value.clone() for name, value in weights.items() if name.startswith("encoder.")}
    save_file(kept, target / "model.safetensors")
    return target


@pytest.mark.parametrize("mels", [80, 128])
def test_log_mel_is_that_of_transformers_200_samples_later(make_sound, mels: int) -> None:
    """Mel frame m is of samples 160 m to 160 m + 400; transformers' is centred on 160 m, and reflects the beginning."""
    sound = make_sound(3.0, 5)
    extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
    theirs = extractor(sound[200:], sampling_rate=16_000, return_tensors="np")["input_features"][0].T
    ours, floor = aligned_log_mel(torch.from_numpy(sound), mel_filters(mels))
    assert len(ours) == 2 * frames_for(len(sound)) + 2
    assert torch.allclose(ours[2:], torch.from_numpy(theirs[2 : len(ours)]), atol=1e-5)
    assert floor == pytest.approx(float(theirs[-1, 0]), abs=1e-6)


def test_layers_are_those_of_transformers(folder: Path, tmp_path: Path, make_sound) -> None:
    model, wave = made(), torch.from_numpy(make_sound(2.0, 5))
    for path in (folder, encoder_only(folder, tmp_path / "encoder")):
        teacher = open_teacher(path)
        assert (teacher.info.kind, teacher.info.layers, teacher.info.pre_norm) == ("whisper", 3, True)
        mel, floor = teacher.mel(wave)
        whole = torch.full((3000, 80), floor)
        whole[: len(mel)] = mel
        with torch.no_grad():
            output = model.encoder(whole.T[None], output_hidden_states=True)
        ours = teacher.run(wave[None])
        frames = frames_for(len(wave))
        assert torch.allclose(ours.entry[0], output.hidden_states[0][0, :frames], atol=1e-5)
        assert torch.allclose(ours.layers[0, 0], output.hidden_states[1][0, :frames], atol=1e-5)
        assert torch.allclose(ours.layers[2, 0], output.last_hidden_state[0, :frames], atol=1e-5)


def test_rows_of_a_batch_are_the_rows_alone(folder: Path, make_sound) -> None:
    teacher = open_teacher(folder)
    sounds = [torch.from_numpy(make_sound(seconds, 7)) for seconds in (1.0, 0.5)]
    wave = torch.zeros(2, len(sounds[0]))
    for row, sound in zip(wave, sounds, strict=True):
        row[: len(sound)] = sound
    batch = teacher.run(wave, torch.tensor([len(sound) for sound in sounds]))
    for row, sound in enumerate(sounds):
        alone = teacher.run(sound[None]).layers[:, 0]
        assert torch.allclose(batch.layers[:, row, : alone.shape[1]], alone, atol=1e-5)
        assert int((~batch.padding[row]).sum()) == alone.shape[1]


def test_a_recording_beyond_30_s_is_heard_window_by_window(folder: Path, make_sound) -> None:
    teacher = open_teacher(folder)
    wave = torch.from_numpy(make_sound(31.0, 2))
    layers = teacher.hidden_states(wave[None])
    assert layers.shape == (3, 1, frames_for(len(wave)), 32) and torch.isfinite(layers).all()
    mel, floor = teacher.mel(wave)
    second = teacher.window([PlacedMel(mel[3000:], floor, 0)])[1]
    assert torch.allclose(layers[0, 0, 1500:], second[0, : layers.shape[2] - 1500], atol=1e-5)


def test_masking_hides_the_mel_frames(folder: Path, make_sound) -> None:
    teacher = open_teacher(folder)
    wave = torch.from_numpy(make_sound(1.0, 2))[None]
    wave[0, 12_000:12_400] += 0.5  # the loudest, which sets the scale
    mask = torch.zeros(1, frames_for(wave.shape[1]), dtype=torch.bool)
    plain, same = teacher.both(wave, None, mask)
    assert torch.equal(plain, same)
    mask[0, 10:20] = True
    _, masked = teacher.both(wave, None, mask)
    changed = (masked[0, 0] - plain[0, 0]).abs().amax(-1)
    assert changed[10:20].min() > 10 * changed[30:].median()
    other = wave.clone()
    other[0, 10 * 320 + 400 : 19 * 320] = 0.05  # samples that only masked mel frames hear
    assert torch.allclose(teacher.hidden_states(other, None, mask), masked, atol=1e-4)


def test_what_is_no_whisper_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    only_decoder = tmp_path / "decoder"
    only_decoder.mkdir()
    (only_decoder / "config.json").write_bytes((folder / "config.json").read_bytes())
    weights = {n: v.clone() for n, v in load_file(folder / "model.safetensors").items() if n.startswith("decoder.")}
    save_file(weights, only_decoder / "model.safetensors")
    with pytest.raises(RdError, match="has no weights of Whisper's encoder"):
        open_teacher(only_decoder)
    half = encoder_only(folder, tmp_path / "half")
    weights = {n: v.clone() for n, v in load_file(half / "model.safetensors").items() if "layers.1." not in n}
    save_file(weights, half / "model.safetensors")
    with pytest.raises(RdError, match=r"parameters missing: layers\.1\."):
        open_teacher(half)
    config = json.loads((folder / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**config, "num_mel_bins": 64}))
    with pytest.raises(RdError, match="64 mels and 1500 positions"):
        open_teacher(half)
    (half / "config.json").write_text(json.dumps({**config, "num_mel_bins": 128}))  # large-v3's input, tiny's weights
    with pytest.raises(RdError, match=r"of another shape: conv1\.weight"):
        open_teacher(encoder_with(folder, half))


def encoder_with(folder: Path, target: Path) -> Path:
    weights = {n: v.clone() for n, v in load_file(folder / "model.safetensors").items() if n.startswith("encoder.")}
    save_file(weights, target / "model.safetensors")
    return target


def test_128_mels(tmp_path: Path, make_sound) -> None:
    made(num_mel_bins=128).save_pretrained(tmp_path)
    layers = open_teacher(tmp_path).hidden_states(torch.from_numpy(make_sound(0.5, 1))[None])
    assert layers.shape[0] == 3 and torch.isfinite(layers).all()


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_the_real_encoder_gives_transformers_features(make_sound) -> None:
    teacher = open_teacher(SHARED)
    sound = make_sound(2.0, 5)
    extractor = transformers.WhisperFeatureExtractor()
    mel = torch.from_numpy(extractor(sound[200:], sampling_rate=16_000, return_tensors="np")["input_features"])
    with torch.no_grad():
        theirs = teacher.model(mel).last_hidden_state[0]
    ours = teacher.hidden_states(torch.from_numpy(sound)[None])[-1, 0]
    similarity = torch.nn.functional.cosine_similarity(ours[1:], theirs[1 : len(ours)], dim=-1)
    assert similarity.min() > 0.99  # the beginning, where Whisper reflects, differs
