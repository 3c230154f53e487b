"""MelHuBERT against the public reference: log-mel, hidden states, and what its pruning tools wrote."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.spec import ExportSpec, Offline
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, frames_for_lengths, load_checkpoint, save_checkpoint
from reuse_distill.student.cost import macs
from reuse_distill.student.foreign import read_foreign, student_of

BOUND = 1e-4
FILES = {
    "plain": "melhubert_tiny_20ms.ckpt",
    "head_l1": "head_pruned_l1_states_prune_6.ckpt",
    "row": "row_pruned_states_prune_80.ckpt",
    "weight30": "weight_pruned_30_last-step.ckpt",
}


@pytest.fixture(scope="module")
def stored(golden_dir: Path) -> dict[str, np.ndarray]:
    folder = golden_dir / "melhubert_tiny"
    arrays = {}
    for name in ("expected_melhubert.npz", "expected_pruning.npz"):
        with np.load(folder / name, allow_pickle=False) as file:
            arrays |= dict(file)
    return arrays


@pytest.fixture(scope="module")
def folder(golden_dir: Path, stored: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints with their statistics beside them, as the public code has them."""
    folder = tmp_path_factory.mktemp("melhubert")
    for name in FILES.values():
        shutil.copy(golden_dir / "melhubert_tiny" / name, folder / name)
    np.save(folder / "libri-360-mean-std.npy", np.stack([stored["mean"], stored["std"]]))
    return folder


@pytest.fixture(scope="module")
def read(folder: Path) -> Callable[[str], Student]:
    return lambda name: student_of(read_foreign(folder / FILES[name])).requires_grad_(False)


@pytest.fixture(scope="module")
def waves(golden_dir: Path) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(soundfile.read(golden_dir / f"inputs/{name}.wav", dtype="float32")[0])
        for name in ("w0", "w1")
    }


@pytest.fixture(scope="module")
def batch(waves: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    padded = torch.nn.utils.rnn.pad_sequence([waves["w0"], waves["w1"]], batch_first=True)
    return padded, torch.tensor([len(waves["w0"]), len(waves["w1"])])


def gap(ours: torch.Tensor, expected: np.ndarray, rows: torch.Tensor | None = None) -> float:
    assert tuple(ours.shape) == expected.shape
    difference = (ours - torch.from_numpy(expected)).abs()
    return float((difference if rows is None else difference[rows]).max())


@pytest.mark.parametrize("name", ["w0", "w1"])
def test_one_utterance(read, stored, waves, name: str) -> None:
    output = read("plain")(waves[name][None])
    assert gap(output.conv_features.transpose(1, 2)[0], stored[f"{name}_feat80"]) < BOUND
    assert gap(output.features, stored[f"{name}_pre_feat"]) < BOUND
    for number, layer in enumerate(output.layers):
        assert gap(layer, stored[f"{name}_hidden_{number}"]) < BOUND
        assert np.abs(stored[f"{name}_hidden_{number}"]).max() > 1


def test_the_second_half_of_an_odd_frame_is_zeros(read, stored, waves) -> None:
    """197 frames of 10 ms are 99 of 20 ms."""
    front = read("plain").feature_extractor
    odd = waves["w0"][: 400 + 196 * 160]
    assert gap(front(odd[None]).transpose(1, 2)[0], stored["w0odd_feat80"]) < BOUND
    padded = torch.nn.functional.pad(odd, (0, 4000))[None]
    assert gap(front(padded, torch.tensor([len(odd)]))[0, :, :99].T, stored["w0odd_feat80"]) < BOUND


@pytest.mark.parametrize("name", FILES)
def test_a_batch_and_what_was_pruned(read, stored, batch, name: str) -> None:
    student = read(name)
    output = student(*batch)
    valid = ~output.padding
    prefix = "batch" if name == "plain" else f"{name}_batch"
    assert valid.sum().item() == stored["batch_pad_mask_1_is_valid"].sum()
    for number, layer in enumerate(output.layers):
        assert gap(layer, stored[f"{prefix}_hidden_{number}"], valid) < BOUND
    if name != "plain":
        assert any(gap(one, stored[f"batch_hidden_{n}"], valid) > 0.05 for n, one in enumerate(output.layers))


def test_shapes_are_those_of_the_weights(read) -> None:
    assert read("plain").config.layer_heads == () and read("plain").config.layer_ffn_widths == ()
    assert read("head_l1").config.layer_heads == (2, 2, 2)
    assert [shape.ffn_width for shape in read("row").config.layer_shapes] == [80, 80, 80]
    assert macs(read("row").config, 100)["ffn"] == 100 * 3 * 2 * 48 * 80
    assert macs(read("head_l1").config, 100)["projections"] == 100 * 3 * 4 * 48 * 24


@pytest.mark.parametrize("name", ["head_l1", "row"])
def test_saved_and_loaded(read, batch, tmp_path: Path, name: str) -> None:
    student = read(name)
    again = load_checkpoint(save_checkpoint(tmp_path / "own", student))
    assert again.config == student.config
    assert torch.allclose(again(*batch).layers[-1], student(*batch).layers[-1], atol=1e-5)


def test_as_a_teacher(folder: Path, read, batch) -> None:
    teacher = open_teacher(folder / FILES["plain"])
    seen = teacher.run(*batch)
    assert (teacher.info.kind, teacher.info.layers, teacher.info.width) == ("melhubert", 3, 48)
    assert torch.equal(seen.layers[1], read("plain")(*batch).layers[1])
    with pytest.raises(RdError, match="no mask embedding"):
        teacher.hidden_states(*batch, torch.zeros(2, 154, dtype=torch.bool))


def public_file(golden_dir: Path) -> dict[str, Any]:
    """What the public checkpoint holds; its arguments are the only class in it, and nothing else is let in."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(golden_dir / "melhubert_tiny" / FILES["plain"], weights_only=True)


@pytest.fixture(scope="module")
def ten_ms(folder: Path, golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights for frames of 10 ms: the public files differ in the width of the input only."""
    data = public_file(golden_dir)
    data["Upstream_Config"]["melhubert"]["feat_emb_dim"] = 40
    data["model"]["pre_extract_proj.weight"] = data["model"]["pre_extract_proj.weight"][:, :40].clone()
    path = tmp_path_factory.mktemp("ten") / "melhubert-10ms.ckpt"
    torch.save(data, path)
    shutil.copy(folder / "libri-360-mean-std.npy", path.parent)
    return path


def test_frames_of_10_ms(ten_ms: Path, stored, waves, batch) -> None:
    student = student_of(read_foreign(ten_ms)).requires_grad_(False)
    output = student(waves["w0"][None])
    normalised = (stored["w0_fbank40_raw"] - stored["mean"]) / stored["std"]
    assert gap(output.conv_features[0].T, normalised) < BOUND
    both = student(*batch)
    assert (~both.padding).sum(1).tolist() == [198, 308]
    assert (both.layers[-1][0, :198] - output.layers[-1][0]).abs().max() < BOUND
    with pytest.raises(RdError, match="a frame every 160 samples"):
        capture(student, ExportSpec("onnx", Offline(), "fp32", (3,), "hidden"))


def test_a_teacher_with_frames_of_10_ms_shows_20(ten_ms: Path, batch) -> None:
    teacher, student = open_teacher(ten_ms), student_of(read_foreign(ten_ms))
    seen, layers = teacher.run(*batch), student(*batch).layers
    frames = frames_for_lengths(batch[1])
    assert (~seen.padding).sum(1).tolist() == frames.tolist() == [99, 154]
    assert torch.allclose(seen.layers[2][0, 98], layers[2][0, 196:198].mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["Upstream_Config"]["melhubert"].update(attention_type="causal"), "only 'original' is supported"),
        (lambda d: d["Upstream_Config"]["melhubert"].update(feat_emb_dim=60), "40 numbers"),
        (lambda d: d["Upstream_Config"]["melhubert"].update(encoder_layer=3), "unknown setting 'encoder_layer'"),
        (lambda d: d["Upstream_Config"].clear(), "no section 'melhubert'"),
        (lambda d: d["model"].pop("encoder.layers.1.fc2.bias"), "missing encoder.layers.1.fc2.bias"),
        (lambda d: d["model"].pop("encoder.layers.1.fc1.weight"), "encoder.layers.1.fc1.weight is missing"),
    ],
)
def test_files_that_do_not_fit(golden_dir: Path, folder: Path, tmp_path: Path, change, message: str) -> None:
    data = public_file(golden_dir)
    change(data)
    torch.save(data, tmp_path / "m.ckpt")
    shutil.copy(folder / "libri-360-mean-std.npy", tmp_path)
    with pytest.raises(RdError, match=message):
        student_of(read_foreign(tmp_path / "m.ckpt"))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file: None, "0 files"),
        (lambda file: np.save(file, np.ones((2, 41), np.float32)), r"floats \(2, 40\) are needed"),
        (lambda file: np.save(file, np.zeros((2, 40), np.float32)), "deviations above 0"),
        (lambda file: file.write_bytes(b"no array"), "not a readable array"),
        (lambda file: np.save(file, np.zeros((2, 9000))), "bytes, two rows of 40 numbers"),
        (lambda file: np.save(file, np.array([{}]), allow_pickle=True), "not a readable array"),
    ],
)
def test_statistics_that_do_not_fit(golden_dir: Path, tmp_path: Path, write, message: str) -> None:
    shutil.copy(golden_dir / "melhubert_tiny" / FILES["plain"], tmp_path / "m.ckpt")
    write(tmp_path / "mean-std.npy")
    with pytest.raises(RdError, match=message):
        read_foreign(tmp_path / "m.ckpt")
