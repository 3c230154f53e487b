"""Teachers against the reference: hidden states of HuBERT and WavLM, unmasked and masked, alone and in a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.runtime.errors import RdError

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def waves(golden_dir: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
    w0, w1 = (torch.from_numpy(soundfile.read(golden_dir / f"inputs/w{i}.wav", dtype="float32")[0]) for i in (0, 1))
    batch = torch.nn.utils.rnn.pad_sequence([w0, w1], batch_first=True)
    return {
        "w0": (w0[None], None),
        "w1": (w1[None], None),
        "batch": (batch, torch.tensor([len(w0), len(w1)])),
    }


def valid_error(ours: torch.Tensor, expected: np.ndarray, padding: np.ndarray | None) -> float:
    error = (ours - torch.from_numpy(expected)).abs().amax(-1)
    return float(error.max() if padding is None else error[torch.from_numpy(~padding)].max())


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
@pytest.mark.parametrize("prefix", ["w0", "w1", "batch"])
def test_hidden_states_equal_transformers(golden_dir: Path, waves, kind: str, prefix: str) -> None:
    folder = golden_dir / f"teacher_{kind}_tiny"
    expected = np.load(folder / "expected_hf.npz", allow_pickle=False)
    wave, lengths = waves[prefix]
    result = open_teacher(folder / "hf", statistics="public").run(wave, lengths)
    padding = ~expected["batch_frame_attention_mask"].astype(bool) if prefix == "batch" else None
    assert valid_error(result.entry, expected[f"{prefix}_hidden_states_0"], padding) < TOLERANCE
    compared = 0
    for layer in range(4):
        key = f"{prefix}_hidden_states_{layer + 1}"
        if key in expected:
            assert valid_error(result.layers[layer], expected[key], padding) < TOLERANCE
            compared += 1
    assert compared == (1 if prefix == "batch" else 4)


@pytest.mark.parametrize(("kind", "file"), [("hubert", "expected_fairseq.npz"), ("wavlm", "expected_wavlm.npz")])
@pytest.mark.parametrize("prefix", ["w0", "w1", "batch"])
@pytest.mark.parametrize("source", ["folder", "file"])
def test_both_passes_equal_the_public_models(
    golden_dir: Path, waves, kind: str, file: str, prefix: str, source: str
) -> None:
    folder = golden_dir / f"teacher_{kind}_tiny"
    expected = np.load(folder / file, allow_pickle=False)
    wave, lengths = waves[prefix]
    path = folder / "hf" if source == "folder" else next(folder.glob("*.pt"))
    teacher = open_teacher(path, statistics="public", frame_rule="public")
    mask = torch.from_numpy(expected[f"{prefix}_masked_mask_indices"])
    plain, masked = teacher.both(wave, lengths, mask)
    padding = expected["batch_frame_padding_mask"] if prefix == "batch" else None
    if padding is not None:
        assert np.array_equal(teacher.run(wave, lengths).padding.numpy(), padding)
    for layer in range(4):
        assert valid_error(plain[layer], expected[f"{prefix}_unmasked_layer_results_{layer}"], padding) < TOLERANCE
        assert valid_error(masked[layer], expected[f"{prefix}_masked_layer_results_{layer}"], padding) < TOLERANCE
    assert (plain - masked).abs().max() > 0.1, "the mask changed nothing"


def test_a_row_of_a_batch_equals_the_row_alone(golden_dir: Path, waves) -> None:
    wave, lengths = waves["batch"]
    teacher = open_teacher(golden_dir / "teacher_hubert_tiny/hf")
    alone = teacher.hidden_states(waves["w0"][0])
    batch = teacher.hidden_states(wave, lengths)
    assert (alone[:, 0] - batch[:, 0, : alone.shape[2]]).abs().max() < 2e-5
    public = open_teacher(golden_dir / "teacher_hubert_tiny/hf", statistics="public").hidden_states(wave, lengths)
    assert (alone[:, 0] - public[:, 0, : alone.shape[2]]).abs().max() > 1e-2, "the public batch differs by design"


def test_files_with_missing_and_unknown_parameters_are_refused(golden_dir: Path, tmp_path: Path) -> None:
    from reuse_distill.student.checkpoints.unpickle import read_torch_file

    stored = read_torch_file(golden_dir / "teacher_wavlm_tiny/wavlm_tiny_ms.pt")
    weights = dict(stored["model"])
    weights["encoder.layers.9.fc1.bias"] = weights.pop("encoder.layers.3.fc1.bias")
    torch.save({"cfg": stored["cfg"], "model": weights}, tmp_path / "odd.pt")
    with pytest.raises(
        RdError, match=r"1 parameters missing: encoder\.layers\.3\.feed_forward\.intermediate_dense\.bias"
    ):
        open_teacher(tmp_path / "odd.pt")
    torch.save(
        {"cfg": {**stored["cfg"], "activation_fn": "relu"}, "model": dict(stored["model"])}, tmp_path / "relu.pt"
    )
    with pytest.raises(RdError, match="activation_fn is 'relu', only 'gelu' is supported"):
        open_teacher(tmp_path / "relu.pt")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(RdError, match="has no 'cfg' and 'model'"):
        open_teacher(tmp_path / "other.pt")
