"""Sizes, names and shapes of the full-size students: the public tables, and the reference's inventory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from reuse_distill.student import PRESETS, Student, StudentConfig, preset
from reuse_distill.student.checkpoints.public import read_public_config

HUBERT_CONV = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)
# inventory file -> our configuration
INVENTORY = {
    "armhubert_960h": preset("armhubert-960h"),
    "armhubert_s_960h": preset("armhubert-s"),
    "maskhubert_960h": preset("maskhubert-960h"),
    "starhubert_derived_432_976": preset("starhubert"),
    "starhubert_L_derived_480_1024": dataclasses.replace(
        preset("starhubert"), width=480, ffn_width=1024, conv_layers=preset("armhubert-960h").conv_layers
    ),
    "starhubert_dataclass_defaults": dataclasses.replace(
        preset("starhubert"), width=768, ffn_width=3072, conv_layers=HUBERT_CONV
    ),
}
PARAMETERS = {
    "armhubert-960h": 26_448_448,
    "armhubert-s": 22_394_080,
    "armwavlm-s": 22_394_080,
    "maskhubert-960h": 26_635_840,
    "starhubert": 22_308_592,
}


def shapes_of(config: StudentConfig) -> dict[str, list[int]]:
    with torch.device("meta"):
        return {key: list(value.shape) for key, value in Student(config).state_dict().items()}


def parameters(config: StudentConfig) -> int:
    with torch.device("meta"):
        return sum(value.numel() for value in Student(config).parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name: str) -> None:
    assert parameters(preset(name)) == PARAMETERS[name]


def test_sizes_without_the_heads() -> None:
    assert parameters(preset("armhubert-960h", head_width=None)) == 22_015_552
    assert parameters(preset("armhubert-s", head_width=None)) == 18_403_552
    assert parameters(preset("maskhubert-960h", head_width=None)) == 22_202_944


def test_inferred_and_own_sizes() -> None:
    assert parameters(preset("starhubert-l")) == pytest.approx(26.63e6, rel=3e-4)
    assert parameters(preset("arm-stream")) == pytest.approx(22e6, rel=0.02)
    assert parameters(preset("tiny")) == pytest.approx(1e6, rel=0.2)
    assert parameters(preset("tiny-stream")) == parameters(preset("tiny"))


@pytest.mark.parametrize("name", ["arm-stream", "tiny-stream", "tiny"])
def test_widths_for_phone_npus(name: str) -> None:
    config = PRESETS[name]
    assert config.width % 32 == config.ffn_width % 32 == 0
    assert all(channels % 16 == 0 for channels, _, _ in config.conv_layers)
    assert config.head_width is not None
    assert config.head_width % 32 == 0


def test_every_second_layer_has_no_query_and_no_key() -> None:
    names = shapes_of(preset("armhubert-960h"))
    for layer in range(12):
        for projection, always in (("q_proj", False), ("k_proj", False), ("v_proj", True), ("out_proj", True)):
            assert (f"encoder.layers.{layer}.self_attn.{projection}.weight" in names) == (always or layer % 2 == 0)


def test_no_inventory_file_is_left_out(golden_dir: Path) -> None:
    assert {file.stem for file in (golden_dir / "inventory").glob("*.json")} - {"summary"} == set(INVENTORY)


@pytest.mark.parametrize("name", INVENTORY)
def test_names_shapes_and_count(name: str, golden_dir: Path) -> None:
    stored = json.loads((golden_dir / f"inventory/{name}.json").read_text())
    assert shapes_of(INVENTORY[name]) == stored["state_dict"]
    assert parameters(INVENTORY[name]) == stored["total_params"]


@pytest.mark.parametrize("name", [name for name in INVENTORY if "defaults" not in name])
def test_the_public_settings_give_the_preset(name: str, golden_dir: Path, tmp_path: Path) -> None:
    """The public YAML of each size, read without evaluating anything, is our preset with the second softmax."""
    yaml = pytest.importorskip("yaml")
    stored = json.loads((golden_dir / f"inventory/{name}.json").read_text())
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"model": stored["class_module"].split("/")[1], "distiller": stored["distiller"]}))
    config = read_public_config(file)
    same = {"reuse_mode": "renormalised", "input_dropout": config.input_dropout}
    assert config == dataclasses.replace(INVENTORY[name], **same)
