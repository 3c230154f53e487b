"""Folders of every family: their layers are transformers' own, whatever was saved beside the encoder and however."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.runtime.errors import RdError
from safetensors.torch import load_file, save_file

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "conv_dim": (8,) * 7,
}  # fmt: skip
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
FAMILIES = ("Hubert", "WavLM", "Wav2Vec2", "UniSpeechSat", "Data2VecAudio")
HEADED = (
    ("Hubert", "ForCTC", {"vocab_size": 8}),
    ("Wav2Vec2", "ForPreTraining", {"codevector_dim": 8, "proj_codevector_dim": 8, "num_codevectors_per_group": 4}),
    ("UniSpeechSat", "ForPreTraining", {"codevector_dim": 8, "proj_codevector_dim": 8, "num_clusters": 4}),
    ("WavLM", "ForXVector", {"tdnn_dim": (8,) * 5, "xvector_output_dim": 8, "use_weighted_layer_sum": True}),
    ("Data2VecAudio", "ForAudioFrameClassification", {}),
)


def made(family: str, kind: str = "Model", **changes):
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **changes})
    return getattr(transformers, f"{family}{kind}")(config).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made("Hubert").save_pretrained(tmp_path / "hubert")
    return tmp_path / "hubert"


@pytest.mark.parametrize("changes", [{}, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_those_of_transformers(tmp_path: Path, make_sound, family: str, changes: dict) -> None:
    if family == "Data2VecAudio" and changes:
        pytest.skip("data2vec has no such variant")
    model = made(family, **changes)
    model.save_pretrained(tmp_path)
    wave = torch.from_numpy(make_sound(0.7, 2))[None] * 3 + 0.1
    teacher = open_teacher(tmp_path)
    assert teacher.can_mask
    normed = bool(changes) or family == "Data2VecAudio"  # their front end has layer norms: normalised audio
    heard = (wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt() if normed else wave
    seen = model(heard, output_hidden_states=True).hidden_states
    ours = teacher.run(wave)
    assert torch.allclose(ours.entry, seen[0], atol=1e-5)
    assert torch.allclose(ours.layers[0], seen[1], atol=1e-5)
    if not changes:  # transformers puts a norm on the last layer of the others
        assert torch.allclose(ours.layers[1], seen[2], atol=1e-5)
    half = open_teacher(tmp_path, dtype=torch.float16).hidden_states(wave)
    assert half.dtype == torch.float16 and torch.allclose(half.float(), ours.layers, atol=0.05)


@pytest.mark.parametrize(("family", "kind", "changes"), HEADED)
def test_heads_are_left_out(tmp_path: Path, family: str, kind: str, changes: dict) -> None:
    model = made(family, kind, **changes)
    model.save_pretrained(tmp_path)
    wave = torch.zeros(1, 800)
    assert torch.isfinite(open_teacher(tmp_path).hidden_states(wave)).all()


def test_pickled_weights_are_tensors_or_refused(folder: Path, tmp_path: Path, make_sound) -> None:
    wave = torch.from_numpy(make_sound(0.3, 2))[None]
    expected = open_teacher(folder).hidden_states(wave)
    weights = {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}  # the file is mapped
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert torch.equal(open_teacher(folder).hidden_states(wave), expected)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({**weights, "evil": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(RdError, match="'evil' is not a tensor"):
        open_teacher(folder)
    assert not (tmp_path / "executed").exists()


def test_weights_in_several_files(folder: Path, make_sound) -> None:
    wave = torch.from_numpy(make_sound(0.3, 2))[None]
    expected = open_teacher(folder).hidden_states(wave)
    model = made("Hubert")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert torch.equal(open_teacher(folder).hidden_states(wave), expected)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    files[1].unlink()
    with pytest.raises(RdError, match=rf"1 of {len(files)} files of weights are missing: {files[1].name}"):
        open_teacher(folder)


def test_damaged_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights, whole = {k: v.clone() for k, v in load_file(path).items()}, path.read_bytes()
    path.write_bytes(whole[:5000])
    with pytest.raises(RdError, match="damaged or cut short"):
        open_teacher(folder)
    weights["encoder.layers.1.final_layer_norm.weight"][3] = float("nan")
    save_file(weights, path)
    with pytest.raises(RdError, match=r"1 parameters are not finite in float32: encoder\.layers\.1\.final_layer_norm"):
        open_teacher(folder)
    weights["encoder.layers.1.final_layer_norm.weight"][3] = 1e5
    save_file(weights, path)
    open_teacher(folder)
    with pytest.raises(RdError, match="not finite in float16"):
        open_teacher(folder, dtype=torch.float16)
    path.unlink()
    with pytest.raises(RdError, match="has no weights"):
        open_teacher(folder)


def test_a_mask_embedding_is_taken_where_there_is_one(folder: Path) -> None:
    """Whatever the configuration says about masks: those of fine-tuned models switch them off."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mask_time_prob": 0.0}))
    assert open_teacher(folder).can_mask
    weights = {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}  # the file is mapped
    del weights["masked_spec_embed"]
    save_file(weights, folder / "model.safetensors")
    assert not open_teacher(folder).can_mask
