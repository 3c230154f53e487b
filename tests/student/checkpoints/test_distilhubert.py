"""Public DistilHuBERT: s3prl's file as its trainer writes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, preset
from reuse_distill.student.checkpoints.distilhubert import load_distilhubert


def test_a_file_without_its_parts_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(RdError, match="there is no 'Distiller' with its 'Config'"):
        load_distilhubert(tmp_path / "x.ckpt")


def distiller(**changes) -> dict:
    section = {
        "extractor_mode": "default", "extractor_conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2",
        "feature_grad_mult": 0.1, "conv_pos": 128, "conv_pos_groups": 16, "encoder_layers": 2, "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 48, "encoder_attention_heads": 4, "final_dim": 24, "n_tasks": 3,
        "pred_layer_id": [4, 8, 12], "task_emb_type": "expand-last", "out_layer_type": "expand-last",
    }  # fmt: skip
    return {"distiller": {**section, **changes}, "teacher": {"model": "hubert_base"}}


@pytest.fixture
def student() -> Student:
    torch.manual_seed(1)
    conv = ((16, 10, 5), *((16, 3, 2),) * 4, *((16, 2, 2),) * 2)
    return Student(preset("distilhubert", conv_layers=conv, width=32, ffn_width=48, heads=4, head_width=24)).eval()


def write(path: Path, student: Student, **changes) -> Path:
    names = {"split_heads.inner.": "output_layer.0.", "split_heads.": "output_layer.2."}
    state = {}
    for name, value in student.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[name] = value
    torch.save({"Distiller": state, "Config": distiller(**changes), "Optimizer": {"step": 3}}, path)
    return path


def test_the_file_of_s3prl(tmp_path: Path, student: Student) -> None:
    read = load_distilhubert(write(tmp_path / "states.ckpt", student))
    wave = 0.1 * torch.randn(1, 6_000)
    for a, b in zip(read(wave).projections, student(wave).projections, strict=True):
        assert torch.equal(a, b)
    assert read.config.targets == (4, 8, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_type": "sparse"}, "attention_type is 'sparse'"),
        ({"n_tasks": 2}, "does not name 2 layers"),
        ({"encoder_layers": "2"}, "encoder_layers is '2', a positive whole number"),
        ({"extractor_conv_feature_layers": "__import__('os').system('x')"}, "is not a plain list"),
        ({"final_dim": 12}, "has shape"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, student: Student, changes, message: str) -> None:
    with pytest.raises(RdError, match=message):
        load_distilhubert(write(tmp_path / "states.ckpt", student, **changes))
