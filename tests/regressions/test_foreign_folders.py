"""Folders of other libraries that were exported wrongly or refused with a hint that led nowhere.

Another ``layer_norm_eps`` and ``do_normalize`` were ignored in silence; heads beside the encoder, weights in several
files and fairseq's ``.pt`` were refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.export.checkpoint_source import read_source
from reuse_distill.export.rd_export import main as rd_export
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import samples_for

transformers = pytest.importorskip("transformers")
TINY: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "conv_dim": (32,) * 7, "num_conv_pos_embeddings": 32, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip


class WithFinalProj(transformers.HubertModel):
    """As ContentVec's folders are written."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.final_proj = torch.nn.Linear(config.hidden_size, 16)


def make(folder: Path, kind: Any = transformers.HubertModel, *, shards: str = "1GB", **changes: Any) -> Any:
    torch.manual_seed(0)
    model = kind(transformers.HubertConfig(**{**TINY, **changes})).eval()
    model.save_pretrained(folder, max_shard_size=shards)
    return model


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    soundfile = pytest.importorskip("soundfile")
    file = Path(__file__).resolve().parents[2] / "demo" / "speech" / "ada-1.flac"
    return soundfile.read(file, dtype="float32")[0][: samples_for(60)]


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3])
def test_another_layer_norm_eps_is_honoured(tmp_path: Path, speech: np.ndarray, epsilon: float) -> None:
    model = make(tmp_path, layer_norm_eps=epsilon)
    student = read_source(tmp_path, None).student
    wave = torch.from_numpy(speech)[None]
    with torch.no_grad():
        expected = model(wave).last_hidden_state
        assert (student(wave).layers[-1] - expected).abs().max() < 1e-4


def test_a_field_that_nobody_knows_is_refused_by_name(tmp_path: Path) -> None:
    make(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for changes, message in (
        ({"hidden_act": "relu"}, "hidden_act is 'relu', only 'gelu' is supported"),
        ({"attention_window": 7}, "attention_window is 7, and what it changes in a hubert encoder is not known here"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small', a number between 0 and 1 is needed"),
        ({"feat_proj_layer_norm": 3}, "feat_proj_layer_norm is 3, true or false is needed"),
    ):
        file.write_text(json.dumps({**config, **changes}))
        with pytest.raises(RdError, match=message):
            read_source(tmp_path, None)


@pytest.mark.parametrize(
    ("kind", "changes", "head"),
    [
        (WithFinalProj, {}, "projection"),
        (transformers.HubertForCTC, {"vocab_size": 32}, "ctc"),
        (transformers.HubertForSequenceClassification, {"num_labels": 3}, "classify"),
    ],
)
def test_heads_beside_the_encoder_are_known(tmp_path: Path, kind: Any, changes: dict[str, Any], head: str) -> None:
    model = make(tmp_path, kind, **changes)
    source = read_source(tmp_path, None)
    assert (
        source.foreign is not None
        and list(source.foreign.heads) == [head]
        and any(head in note for note in source.notes)
    )
    own = model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in source.foreign.heads[head].items())
    encoder, wave = getattr(model, "hubert", model), 0.1 * torch.randn(1, 4000)
    with torch.no_grad():
        expected = encoder(wave).last_hidden_state
        assert (source.student(wave).layers[-1] - expected).abs().max() < 1e-4
    assert (open_teacher(tmp_path).hidden_states(wave)[-1] - expected).abs().max() < 1e-4


def test_a_batch_norm_before_the_positions_is_no_unknown_key(tmp_path: Path) -> None:
    model, wave = make(tmp_path, conv_pos_batch_norm=True), 0.1 * torch.randn(1, 4000)
    with torch.no_grad():
        expected = model(wave).last_hidden_state
        assert (read_source(tmp_path, None).student(wave).layers[-1] - expected).abs().max() < 1e-4
    open_teacher(tmp_path)


def test_sharded_weights_are_read_and_lead_nowhere_else(tmp_path: Path) -> None:
    model, wave = make(tmp_path / "s", shards="100KB"), 0.1 * torch.randn(1, 4000)
    index = tmp_path / "s" / "model.safetensors.index.json"
    with torch.no_grad():
        expected = model(wave).last_hidden_state
        assert (read_source(tmp_path / "s", None).student(wave).layers[-1] - expected).abs().max() < 1e-4
    data = json.loads(index.read_text())
    name = next(iter(data["weight_map"]))
    for place in ("../outside.safetensors", "/etc/passwd", ".."):
        index.write_text(json.dumps({"weight_map": {**data["weight_map"], name: place}}))
        with pytest.raises(RdError, match="which is not a file of this folder"):
            read_source(tmp_path / "s", None)
    index.write_text(json.dumps({"weight_map": {**data["weight_map"], name: "gone.safetensors"}}))
    with pytest.raises(RdError, match=r"files of weights are missing: gone\.safetensors"):
        read_source(tmp_path / "s", None)


def test_normalisation_that_the_folder_asks_for_is_done(tmp_path: Path, speech: np.ndarray, capsys: Any) -> None:
    """The bundle gives the features of transformers' own pipeline, however loud the recording is."""
    model = make(tmp_path / "n", num_hidden_layers=1)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    extractor.save_pretrained(tmp_path / "n")
    assert rd_export([str(tmp_path / "n"), "--output", str(tmp_path / "b")]) == 0
    assert "normalised per utterance (do_normalize of preprocessor_config.json)" in capsys.readouterr().err
    encoder = Encoder.load(tmp_path / "b")
    assert (encoder.manifest.input.level, encoder.manifest.input.level_epsilon) == ("utterance", 1e-7)
    assert any("(x - mean) / sqrt(variance + 1e-07)" in rule for rule in encoder.manifest.input.rules)
    for gain in (1.0, 0.1, 0.01, 0.003):
        wave = speech * np.float32(gain)
        values = extractor(wave, sampling_rate=16_000, return_tensors="pt").input_values
        with torch.no_grad():
            expected = model(values).last_hidden_state[0].numpy()
        assert np.abs(encoder.extract(wave) - expected).max() < 1e-4
    assert open_teacher(tmp_path / "n").normalise == pytest.approx(1e-7)
    stream = encoder.stream()
    loud = encoder.join([*stream.push(speech), *stream.finish()])
    stream = encoder.stream()
    quiet = encoder.join([*stream.push(speech * np.float32(0.1)), *stream.finish()])
    assert np.abs(loud - quiet).max() < 0.05  # running statistics: the level does not matter there either


def test_fairseq_files_are_exported(tmp_path: Path, golden_dir: Path) -> None:
    file = golden_dir / "teacher_hubert_tiny" / "hubert_tiny_fairseq.pt"
    source, teacher = read_source(file, None), open_teacher(file)
    wave = 0.1 * torch.randn(1, 6000)
    with torch.no_grad():
        ours = torch.stack(source.student(wave).layers)
    assert (ours - teacher.hidden_states(wave)).abs().max() < 1e-4
    torch.save(
        {"cfg": {"model": {"_name": "hubert", "encoder_layers": 2}, "task": {"normalize": False}}, "model": {}},
        tmp_path / "hubert_base_ls960.pt",
    )
    with pytest.raises(RdError, match="its settings are not those of HuBERT or WavLM"):
        read_source(tmp_path / "hubert_base_ls960.pt", None)
    torch.save({"weights": {}}, tmp_path / "other.pt")
    with pytest.raises(RdError, match="a file without a configuration in it") as caught:
        read_source(tmp_path / "other.pt", None)
    assert "--config FILE.yaml" in str(caught.value.hint)
