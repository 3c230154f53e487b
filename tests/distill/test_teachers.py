"""Teachers that are refused, and the small random one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reuse_distill.distill.teachers import open_teacher
from reuse_distill.distill.teachers.protocol import frame_padding
from reuse_distill.runtime.errors import RdError
from reuse_distill.student.front_ends.frontend import normalised


@pytest.fixture
def copy(tiny_teacher: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_teacher, tmp_path / "copy"))


def rewrite(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_both_passes_are_the_two_single_passes(tiny_teacher: Path, make_sound) -> None:
    teacher = open_teacher(tiny_teacher)
    wave = torch.stack([torch.from_numpy(make_sound(1.0, s)) for s in (1, 2)])
    lengths = torch.tensor([16_000, 9_000])
    mask = torch.zeros(2, 49, dtype=torch.bool)
    mask[:, 5:12] = True
    plain, masked = teacher.both(wave, lengths, mask)
    assert plain.shape == (2, 2, 49, 32)
    assert torch.allclose(plain, teacher.hidden_states(wave, lengths), atol=1e-5)
    assert torch.allclose(masked, teacher.hidden_states(wave, lengths, mask), atol=1e-5)
    assert not plain.requires_grad and teacher.info.layers == 2 and teacher.info.width == 32


def test_folders_that_are_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(RdError, match="there is no teacher at"):
        open_teacher(tmp_path / "absent")
    rewrite(copy, model_type="bert")
    with pytest.raises(RdError, match="model_type 'bert' is not a known encoder"):
        open_teacher(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(RdError, match="is not JSON"):
        open_teacher(copy)
    (copy / "config.json").unlink()
    with pytest.raises(RdError, match=r"has no config\.json"):
        open_teacher(copy)


def test_missing_and_left_over_weights_are_named(copy: Path) -> None:
    rewrite(copy, num_hidden_layers=3)
    with pytest.raises(RdError, match=r"parameters missing: encoder\.layers\.2"):
        open_teacher(copy)
    rewrite(copy, num_hidden_layers=1)
    with pytest.raises(RdError, match=r"parameters unknown: encoder\.layers\.1"):
        open_teacher(copy)


def test_another_frame_rate_is_refused(tmp_path: Path) -> None:
    from transformers import HubertConfig, HubertModel

    config = HubertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8,) * 6, conv_kernel=(10, 3, 3, 3, 3, 2), conv_stride=(5, 2, 2, 2, 2, 2),
    )  # fmt: skip
    HubertModel(config).save_pretrained(tmp_path / "fast")
    with pytest.raises(RdError, match="one frame per 160 samples from 240, students one per 320 from 400"):
        open_teacher(tmp_path / "fast")


def test_frame_rules_differ_by_the_last_frame() -> None:
    lengths = torch.tensor([32_000, 49_600])
    conv = (~frame_padding(lengths, 49_600, 154, "conv")).sum(1)
    public = (~frame_padding(lengths, 49_600, 154, "public")).sum(1)
    assert conv.tolist() == [99, 154] and public.tolist() == [100, 154]


@pytest.mark.parametrize("kind", ["Hubert", "WavLM", "Wav2Vec2", "UniSpeechSat", "Data2VecAudio"])
@pytest.mark.parametrize("large", [False, True])
def test_every_kind_gives_the_hidden_states_of_its_own_forward(
    tmp_path: Path, make_sound, kind: str, large: bool
) -> None:
    """``large``: norm in every conv layer, norm before attention, normalised audio, as the Large models are."""
    import transformers

    shape = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True} if large else {}
    if kind == "Data2VecAudio":
        shape |= {"feat_extract_norm": "layer", "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}
        shape.pop("do_stable_layer_norm", None)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32, conv_dim=(8,) * 7,
        num_conv_pos_embedding_groups=4, mask_time_prob=0.5, **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(tmp_path / "t")
    teacher = open_teacher(tmp_path / "t", statistics="public", attention="eager")
    wave = torch.stack([torch.from_numpy(make_sound(1.0, s)) for s in (1, 2)])
    lengths = torch.tensor([16_000, 11_000])
    samples = (torch.arange(16_000)[None] < lengths[:, None]).long()
    heard = normalised(wave, lengths, epsilon=1e-7) if teacher.normalise else wave * samples
    assert (teacher.normalise == 1e-7) == (config.feat_extract_norm == "layer")
    with torch.no_grad():
        expected = model(heard, attention_mask=samples, output_hidden_states=True)
    result = teacher.run(wave * samples, lengths, maps=True)
    valid = ~result.padding
    # Of models with norm first, transformers returns the last state after a norm that is no layer's.
    layers = 2 if getattr(config, "do_stable_layer_norm", False) else 3
    for number in range(layers):
        ours, theirs = result.layers[number][valid], expected.hidden_states[number + 1][valid]
        assert (ours - theirs).abs().max() < 1e-5, number
    assert (result.entry[valid] - expected.hidden_states[0][valid]).abs().max() < 1e-5
    assert result.maps.shape == (3, 2, 49, 49)
    assert torch.allclose(result.maps.sum(-1)[:, valid], torch.ones(()), atol=1e-5)
    assert teacher.info.kind == config.model_type


def test_optional_parts_of_transformers_are_quiet() -> None:
    """Where torchao is installed its import reports other machines' kernels as missing."""
    code = "from reuse_distill.distill.teachers.transformers_model import transformers; transformers().HubertModel"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr == ""
