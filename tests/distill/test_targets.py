"""Targets made once: what they hold, how a run reads them, and what goes wrong."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from reuse_distill.distill import files
from reuse_distill.distill.cli import main
from reuse_distill.distill.data.utterances import find_utterances
from reuse_distill.distill.recipe import load_recipe
from reuse_distill.distill.teachers import making, open_teacher
from reuse_distill.distill.teachers.making import GAP_FRAMES, PIECE_FRAMES, make_targets, plan_windows
from reuse_distill.distill.teachers.protocol import layers_by_depth, normed_targets
from reuse_distill.distill.teachers.stored import TargetStore, layer_norm, read_index, utterance_key
from reuse_distill.distill.training import RunSettings, run
from reuse_distill.distill.training.run_folder import read_metrics
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import load_checkpoint

WHISPER = {
    "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "vocab_size": 20,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 1, "decoder_start_token_id": 1,
}  # fmt: skip
HINTS = ["loss.kind=hint", "loss.target_norm=layer", "student.fit_teacher=true"]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("teacher") / "small-whisper"
    transformers.WhisperModel(transformers.WhisperConfig(**WHISPER)).save_pretrained(folder)
    return folder


def made(teacher: Path, data: Path, folder: Path, **how) -> Path:
    return make_targets(open_teacher(teacher), find_utterances(data), folder, report=lambda _: None, **how)


@pytest.fixture(scope="module")
def targets(whisper: Path, audio_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(whisper, audio_folder, tmp_path_factory.mktemp("targets") / "t")


def test_windows_hold_whole_utterances_with_gaps() -> None:
    frames = [600, 1000, 3200, 100]
    windows = plan_windows(frames, packed=True)
    for window in windows:
        ends = [0] + [piece.position + piece.frames + GAP_FRAMES for piece in window]
        assert all(piece.position >= end for piece, end in zip(window, ends, strict=False))
        assert window[-1].position + window[-1].frames <= PIECE_FRAMES
    pieces = sorted((p.utterance, p.start, p.frames) for window in windows for p in window)
    assert pieces == [(0, 0, 600), (1, 0, 1000), (2, 0, 1500), (2, 1500, 1500), (2, 3000, 200), (3, 0, 100)]
    assert len(windows) == 4
    assert [len(window) for window in plan_windows(frames, packed=False)] == [1] * 6


def test_stored_layers_are_the_teachers_without_what_the_position_adds(
    whisper: Path, audio_folder: Path, targets: Path
) -> None:
    """Of a window's first recording the features are those of the recording alone, but for its neighbours."""
    teacher, store = open_teacher(whisper), TargetStore(targets)
    first = find_utterances(audio_folder).utterances[0]
    samples = torch.from_numpy(soundfile.read(first.path, dtype="float32")[0])
    key = utterance_key(first)
    alone = teacher.hidden_states(samples[None])[:, 0]
    mean = torch.from_numpy(np.load(targets / "position_mean.npy"))
    assert mean.shape == (3, 1500, 32)
    stored = torch.from_numpy(store.frames(key, 0, alone.shape[1]))
    shift = mean[:, : alone.shape[1]] - mean.mean(1, keepdim=True)
    similarity = torch.nn.functional.cosine_similarity(stored[:2], (alone - shift)[:2], dim=-1)
    assert similarity.min() > 0.99
    some = store.frames(key, 5, 7)
    np.testing.assert_array_equal(some, stored[:, 5:12].numpy())


def test_a_normed_store_norms_all_but_the_last_layer(targets: Path) -> None:
    plain, normed = TargetStore(targets), TargetStore(targets, target_norm="layer")
    key = next(iter(plain.index.utterances))
    raw, ours = plain.frames(key, 0, 9), normed.frames(key, 0, 9)
    np.testing.assert_allclose(ours[:2], layer_norm(raw[:2]), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ours[2], raw[2])
    expected = normed_targets(torch.from_numpy(raw), final_norm=True).numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_targets_of_a_hubert_are_its_layers(tiny_teacher: Path, audio_folder: Path, tmp_path: Path) -> None:
    store = TargetStore(made(tiny_teacher, audio_folder, tmp_path / "t", layers=[2]))
    utterance = find_utterances(audio_folder).utterances[2]
    samples = torch.from_numpy(soundfile.read(utterance.path, dtype="float32")[0])
    layers = open_teacher(tiny_teacher).hidden_states(samples[None])[[1], 0]
    stored = store.frames(utterance_key(utterance), 0, layers.shape[1])
    np.testing.assert_allclose(stored, layers.numpy(), rtol=2e-3, atol=2e-3)
    with pytest.raises(RdError, match=r"holds layers \[2\].*needs \[1\] too"):
        TargetStore(tmp_path / "t", layers=[1, 2])


def test_a_run_from_targets_is_the_run_of_the_teacher(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path
) -> None:
    """Whole utterances: the same losses but for float16; the same batches, as the crops of both are on frames."""
    stored = made(tiny_teacher, audio_folder, tmp_path / "t")
    recipe = load_recipe(str(small_recipe), [*HINTS, "training.steps=3", "data.crop_seconds=0"])
    settings = {"data": audio_folder, "device": "cpu"}
    run(recipe, RunSettings(tiny_teacher, output=tmp_path / "a", **settings))
    run(recipe, RunSettings(None, output=tmp_path / "b", targets=stored, **settings))
    heard, read = (read_metrics(tmp_path / name) for name in "ab")
    assert [row["loss"] for row in read] == pytest.approx([row["loss"] for row in heard], rel=2e-3)


def test_a_student_learns_from_targets_in_crops_and_a_run_resumes(
    targets: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path, losses
) -> None:
    changes = ["training.steps=30", "data.crop_seconds=0.5", "data.student_gain_db=[-20, 6]", "data.cache_gib=0.1"]
    recipe = load_recipe(str(small_recipe), [*HINTS, *changes, "data.narrow_band_probability=0.3"])
    settings = {"data": audio_folder, "device": "cpu", "targets": targets}
    student = run(recipe, RunSettings(None, output=tmp_path / "run", **settings))
    rows = losses(tmp_path / "run")
    assert load_checkpoint(student).config.head_width == 32
    assert np.mean([row["loss"] for row in rows[-5:]]) < 0.9 * np.mean([row["loss"] for row in rows[:5]])
    run(recipe, RunSettings(None, output=tmp_path / "halves", stop_after=7, **settings))
    run(recipe, RunSettings(None, output=tmp_path / "halves", resume=True, **settings))
    np.testing.assert_equal(losses(tmp_path / "halves"), rows)


def test_what_targets_cannot_serve_is_refused(
    whisper: Path, targets: Path, tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path
) -> None:
    def start(*changes: str, **how) -> None:
        recipe = load_recipe(str(small_recipe), [*HINTS, "training.steps=1", *changes])
        settings = {"teacher": None, "data": audio_folder, "targets": targets, "device": "cpu", **how}
        run(recipe, RunSettings(output=tmp_path / "run", **settings))

    with pytest.raises(RdError, match=r"masking needs the teacher itself"):
        start("loss.kind=masking")
    with pytest.raises(RdError, match=r"data\.gain_db changes what the teacher hears"):
        start("data.gain_db=6")
    with pytest.raises(RdError, match=r"data\.speeds changes what"):
        start("data.speeds=[0.9, 1.1]")
    with pytest.raises(RdError, match=r"data\.noise changes what"):
        start(f"data.noise={audio_folder}")
    with pytest.raises(RdError, match=r"targets of small-whisper .* --teacher is"):
        start(teacher=tiny_teacher)
    other = tmp_path / "other"
    other.mkdir()
    soundfile.write(other / "new.wav", np.full(8000, 0.1, np.float32), 16_000)
    with pytest.raises(RdError, match="no targets of 1 of 1 utterances"):
        start(data=other)
    with pytest.raises(RdError, match="nothing to learn from"):
        start(targets=None)


def test_damage_is_named(targets: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(targets, tmp_path / "copy"))
    shard = copy / "shard-00000.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(RdError, match=r"shard-00000\.npy is damaged: its SHA-256"):
        TargetStore(copy)
    shard.unlink()
    with pytest.raises(RdError, match=r"shard-00000\.npy is missing"):
        TargetStore(copy)
    index = json.loads((copy / "targets.json").read_text())
    (copy / "targets.json").write_text(json.dumps({**index, "version": 9}))
    with pytest.raises(RdError, match="has version 9"):
        TargetStore(copy)
    (copy / "targets.json").write_text(json.dumps({**index, "complete": False}))
    with pytest.raises(RdError, match="is incomplete"):
        TargetStore(copy)
    with pytest.raises(RdError, match=r"has no targets\.json"):
        TargetStore(tmp_path)


def test_a_full_disk_loses_nothing(
    whisper: Path, audio_folder: Path, targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "SHARD_WINDOWS", 1)
    long = tmp_path / "long"
    long.mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).standard_normal(20 * 16_000) * 0.05
        soundfile.write(long / f"{number}.wav", noise.astype(np.float32), 16_000)
    uninterrupted = made(whisper, long, tmp_path / "whole")
    write, calls = making.write_atomically, []

    def full(path: Path, data: bytes) -> None:
        calls.append(path.name)
        if path.name == "shard-00001.npy":
            raise RdError(f"{path} was not written: {errno.ENOSPC}")
        write(path, data)

    with monkeypatch.context() as patched, pytest.raises(RdError, match="was not written"):
        patched.setattr(making, "write_atomically", full)
        made(whisper, long, tmp_path / "t")
    assert len(read_index(tmp_path / "t").shards) == 1
    with pytest.raises(RdError, match="targets of other teacher"):
        torch.manual_seed(4)
        other = tmp_path / "other-whisper"
        transformers.WhisperModel(transformers.WhisperConfig(**WHISPER)).save_pretrained(other)
        made(other, long, tmp_path / "t")
    with pytest.raises(RdError, match="targets of other data"):
        made(whisper, audio_folder, tmp_path / "t")
    made(whisper, long, tmp_path / "t")
    for name in ("shard-00000.npy", "shard-00001.npy", "position_mean.npy"):
        assert (tmp_path / "t" / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_no_room_is_said_before_anything_is_computed(
    whisper: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "SPARE_BYTES", 1 << 60)
    with pytest.raises(RdError, match=r"the targets need 0\.00 GB"):
        made(whisper, audio_folder, tmp_path / "t")
    with pytest.raises(RdError, match="--layers 3,1, but small-whisper has layers 1 to 3"):
        made(whisper, audio_folder, tmp_path / "u", layers=[3, 1])


def test_the_command_says_the_size_and_where(whisper: Path, audio_folder: Path, tmp_path: Path, capsys) -> None:
    words = ["targets", "--teacher", str(whisper), "--data", str(audio_folder), "--output", str(tmp_path / "t")]
    assert main([*words, "--layers", "1,3"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "t") and "GB to write in 1 shards" in err and "layers [1, 3]" in err
    assert main([*words, "--layers", "1,3"]) == 0
    assert "is complete" in capsys.readouterr().err
    assert main([*words, "--layers", "one"]) == 2


def test_a_few_recordings_take_the_position_mean_of_many(
    whisper: Path, tiny_teacher: Path, audio_folder: Path, targets: Path, tmp_path: Path, capsys
) -> None:
    few = find_utterances(audio_folder).utterances[0].path
    (tmp_path / "few.csv").write_text(f"file\n{few}\n", encoding="utf-8")
    words = ["targets", "--teacher", str(whisper), "--data", str(tmp_path / "few.csv"), "--layers", "1,3"]
    assert main([*words, "--output", str(tmp_path / "t"), "--position-mean", str(targets)]) == 0
    mean = np.load(tmp_path / "t" / "position_mean.npy")
    np.testing.assert_array_equal(mean, np.load(targets / "position_mean.npy")[[0, 2]])
    assert not np.array_equal(mean, np.load(made(whisper, few, tmp_path / "own", layers=[1, 3]) / "position_mean.npy"))
    capsys.readouterr()
    other = ["targets", "--teacher", str(tiny_teacher), "--data", str(few), "--output", str(tmp_path / "u")]
    assert main([*other, "--position-mean", str(targets)]) == 2
    assert "--position-mean is of targets of the same teacher and layers" in capsys.readouterr().err


def test_layers_are_paired_by_depth() -> None:
    assert layers_by_depth(6, 6) == (1, 2, 3, 4, 5, 6)
    assert layers_by_depth(6, 12) == (2, 4, 6, 8, 10, 12)
    assert layers_by_depth(6, 4) == (1, 1, 2, 3, 3, 4)
    assert layers_by_depth(6, 24)[-1] == 24 and layers_by_depth(6, 2) == (1, 1, 1, 1, 2, 2)


def test_files_are_written_whole(tmp_path: Path) -> None:
    with pytest.raises(RdError, match="was not written"):
        files.write_atomically(tmp_path / "missing" / "file", b"x")
