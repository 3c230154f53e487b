"""SKILL's groups, DiceHuBERT's clusters and Fast-HuBERT's front end: their parts by hand, and short runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from reuse_distill.distill.cli import main
from reuse_distill.distill.cluster_loss import TEMPERATURE, cluster_logits, codes_of, masked_prediction
from reuse_distill.distill.losses import check_groups, group_means, groups_by_likeness
from reuse_distill.distill.recipe import LossSettings, load_recipe
from reuse_distill.distill.training.pairing import read_centres
from reuse_distill.distill.training.run_folder import read_metrics
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, load_checkpoint


def test_groups_of_like_neighbours() -> None:
    likeness = np.full((5, 5), 0.2)
    likeness[:2, :2], likeness[2:, 2:] = 0.9, 0.8
    assert groups_by_likeness(likeness.tolist(), 2) == ((1, 2), (3, 4, 5))
    assert groups_by_likeness(likeness.tolist(), 5) == ((1,), (2,), (3,), (4,), (5,))
    likeness[0, 4] = likeness[4, 0] = 1.0  # like, but not neighbours
    assert groups_by_likeness(likeness.tolist(), 4) == ((1, 2), (3,), (4,), (5,))
    with pytest.raises(RdError, match=r"loss.layer_groups is 6"):
        groups_by_likeness(likeness.tolist(), 6)


def test_means_of_groups() -> None:
    layers = torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 3)
    assert group_means(list(layers), ((1, 2), (3, 4)))[:, 0, 0, 0].tolist() == [0.5, 2.5]
    for groups in (((1, 2), (2, 3, 4)), ((1, 2), (3,)), ((1, 2), (3, 4), ())):
        with pytest.raises(RdError, match="are not the 4 layers"):
            check_groups(groups, 4)
    with pytest.raises(RdError, match="without the loss hint"):
        LossSettings(layer_groups=2)


def test_clusters_by_hand() -> None:
    centres = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert codes_of(torch.tensor([[[0.9, 0.1], [0.1, -3.0]]]), centres).tolist() == [[0, 3]]
    logits = cluster_logits(torch.tensor([[[5.0, 0.0]]]), centres)
    assert logits[0, 0].tolist() == pytest.approx([1 / TEMPERATURE, -1 / TEMPERATURE, 0, 0])
    predicted = torch.tensor([[[5.0, 1.0], [1.0, 2.0], [1.0, 1.0], [-1.0, 0.0]]], requires_grad=True)
    mask, padding = torch.tensor([[True, True, False, True]]), torch.tensor([[False, False, False, True]])
    codes = torch.tensor([[0, 3, 0, 0]])
    masked, seen, right = masked_prediction(predicted, codes, centres, mask, padding, unmasked_weight=0.5)
    each = torch.nn.functional.cross_entropy(cluster_logits(predicted, centres)[0], codes[0], reduction="none")
    each = each.detach()
    assert float(masked.detach()) == pytest.approx(float(each[0] + each[1]))
    assert float(seen.detach()) == pytest.approx(float(each[2] / 2))
    assert int(right) == 1
    masked.backward()
    assert (predicted.grad[0, :2] != 0).any() and (predicted.grad[0, 2:] == 0).all(), "masked frames teach"


def test_fast_hubert_has_layers_at_25_hz() -> None:
    changes = ("width=32", "ffn_width=32", "heads=4", "layers=2", "reuse_layers=[2]", "head_width=32")
    sizes = [f"student.changes.{change}" for change in changes]
    config = load_recipe(
        "fast-hubert", [*sizes, "student.changes.conv_layers=[[16, 5, 1], [24, 5, 2]]"]
    ).student.config()
    output = Student(config).eval()(torch.zeros(1, 320 * 20 + 80), with_maps=True)
    assert output.maps[0].shape[-1] == 10 and output.projections[0].shape == (1, 20, 32)


@pytest.fixture
def distilled(tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(*overrides: str, output: str = "run", status: int = 0) -> Path:
        words = ["run", str(small_recipe), "--teacher", str(tiny_teacher), "--data", str(audio_folder)]
        assert main([*words, "--output", str(tmp_path / output), "--steps", "4", *overrides]) == status
        return tmp_path / output

    return run


def test_a_run_by_groups(distilled: Callable[..., Path]) -> None:
    folder = distilled("loss.kind=hint", "loss.layer_groups=1")
    assert json.loads((folder / "run.json").read_text())["recipe"]["loss"]["groups"] == [[1, 2]]
    rows = read_metrics(folder)
    assert all("layer_1" in row and "layer_2" not in row for row in rows), "one group, one term"


def test_a_run_by_alignment_trains_the_last_layers(distilled: Callable[..., Path]) -> None:
    start = distilled("loss.kind=hint", output="start") / "student"
    words = ("--init", str(start), "loss.kind=align", "training.last_layers=1", "optimiser.weight_decay=0")
    rows = read_metrics(distilled(*words))
    assert all(row["loss"] == pytest.approx(row["alignment"] + 0.4 * row["regulariser"], rel=1e-4) for row in rows)
    before, after = load_checkpoint(start), load_checkpoint(start.parent.parent / "run/student")
    moved = {name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert moved and all(name.startswith(("encoder.layers.1.", "proj_head.1.")) for name in moved)
    assert distilled("loss.kind=hint", "training.last_layers=3", output="deep", status=2)


def test_a_run_by_clusters(distilled: Callable[..., Path], capsys) -> None:
    folder = distilled("loss.kind=clusters", "loss.clusters=8", "optimiser.lr=5e-3")
    centres = read_centres(folder / "centres.npy", 8)
    assert centres.shape == (8, 32)
    rows = read_metrics(folder)
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["masked"]) and 0 < rows[0]["masked_frames"] < 1
    assert distilled("loss.kind=clusters", "loss.clusters=4000", output="many", status=2)
    assert "are too few for 4000 clusters" in capsys.readouterr().err
    (folder / "centres.npy").write_bytes(b"\x93NUMPY nothing")
    with pytest.raises(RdError, match="cannot be read"):
        read_centres(folder / "centres.npy", 8)
