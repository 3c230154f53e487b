"""Heads: what is saved comes back, folding changes nothing, and what does not fit is refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks import TaskOutput
from reuse_distill.student.tasks import HeadConfig, TaskHead, folded_linear, linear_of_units, load_head, save_head

SHA = "ab" * 32


def config_of(kind: str, **changes) -> HeadConfig:
    parts = {
        "projection": {"size": 5},
        "units": {"size": 7},
        "ctc": {"size": 4, "labels": ("<pad>", "|", "a", "b"), "blank": 0, "delimiter": "|"},
        "classify": {"size": 3, "labels": ("x", "y", "z")},
        "spot": {"size": 2, "labels": ("alexa", "jarvis"), "parts": 3, "thresholds": (0.5, 0.6), "search_frames": 40},
    }[kind]
    return HeadConfig(TaskOutput("task", kind, **parts), SHA, (2, 4), 6, **changes)


@pytest.mark.parametrize("kind", ["projection", "units", "ctc", "classify", "spot"])
@pytest.mark.parametrize("inner", [None, 9])
def test_a_head_comes_back_as_it_was(kind: str, inner: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = TaskHead(config_of(kind, inner_width=inner, metrics={"accuracy": 0.5})).eval()
    save_head(tmp_path / "head", head, card="# card\n")
    loaded = load_head(tmp_path / "head")
    features = torch.randn(2, 2, 11, 6)
    assert loaded.config == head.config and (tmp_path / "head" / "README.md").read_text() == "# card\n"
    result = loaded.module(features)
    assert torch.equal(result, head(features)) and result.shape == (2, 11, head.config.output.columns)
    assert str(result.dtype) == f"torch.{head.config.output.dtype}"
    if kind in ("ctc", "spot"):
        total = result.exp().sum(-1) if kind == "ctc" else result.sum(-1)
        assert torch.allclose(total, torch.ones(2, 11))


def test_units_are_the_nearest_centroids() -> None:
    random = torch.Generator().manual_seed(1)
    x, centroids = torch.randn(300, 12, generator=random) * 3 + 5, torch.randn(20, 12, generator=random)
    mean, scale = x.mean(0), 1 / x.std(0)
    weight, bias = linear_of_units(centroids, mean, scale)
    nearest = torch.cdist((x - mean) * scale, centroids).argmin(1)
    assert torch.equal((x @ weight.T + bias).argmax(1), nearest)


def test_folding_keeps_the_function() -> None:
    random = torch.Generator().manual_seed(2)
    x = torch.randn(3, 10, 6, generator=random)  # N, F, W
    weight, bias, mean, scale = (torch.randn(*s, generator=random) for s in ((4, 6), (4,), (3, 6), (3, 6)))
    mix = torch.softmax(torch.randn(3, generator=random), 0)
    plain = torch.einsum("n,nfw->fw", mix, (x - mean[:, None]) * scale[:, None]) @ weight.T + bias
    full, shifted = folded_linear(weight, bias, mix=mix, mean=mean, scale=scale)
    assert torch.allclose(torch.cat(list(x), dim=1) @ full.T + shifted, plain, atol=1e-5)


def test_a_head_of_another_student_or_width_is_refused(tmp_path: Path) -> None:
    save_head(tmp_path / "h", TaskHead(config_of("units", student_name="tiny")))
    head = load_head(tmp_path / "h")
    head.check_fits(sha256=SHA, width=6, known=(1, 2, 3, 4), where="student")
    with pytest.raises(RdError, match="trained on other weights: tiny"):
        head.check_fits(sha256="cd" * 32, width=6, known=(1, 2, 3, 4), where="student")
    with pytest.raises(RdError, match="takes features of width 6, student gives 8"):
        head.check_fits(sha256=SHA, width=8, known=(1, 2, 3, 4), where="student")
    with pytest.raises(RdError, match=r"takes layer 4, student has 1\.\.3"):
        head.check_fits(sha256=SHA, width=6, known=(1, 2, 3), where="student")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "ctc", "size": 2, "labels": ["a", "b"]}, "blank None is none of the 2 labels"),
        ({"kind": "classify", "size": 2, "labels": ["a", "a"]}, "a label appears twice"),
        ({"kind": "classify", "size": 3, "labels": ["a"]}, "1 labels for 3 classify outputs"),
        ({"kind": "spot", "size": 1, "labels": ["a"], "thresholds": [2.0]}, "thresholds within 0..1"),
        ({"name": "features"}, "not a usable name"),
        ({"name": "../x"}, "not a usable name"),
        ({"kind": "speaker"}, "kind 'speaker' is unknown"),
        ({"size": 10**9}, "outside 1..65536"),
        ({"surprise": 1}, "unknown key 'surprise'"),
    ],
)
def test_a_bad_description_is_refused_by_name(changes: dict, message: str, tmp_path: Path) -> None:
    save_head(tmp_path / "h", TaskHead(config_of("projection")))
    file = tmp_path / "h" / "head.json"
    data = json.loads(file.read_text())
    data["head"]["output"].update(changes)
    file.write_text(json.dumps(data))
    with pytest.raises(RdError, match=message):
        load_head(tmp_path / "h")


def test_bad_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = save_head(tmp_path / "h", TaskHead(config_of("projection")))
    file = folder / "head.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-8])
    with pytest.raises(RdError, match="damaged or cut short"):
        load_head(folder)
    save_file({"outer.weight": torch.zeros(5, 11), "outer.bias": torch.zeros(5)}, file)
    with pytest.raises(RdError, match=r"outer\.weight is \(5, 1[12]\), head\.json says"):
        load_head(folder)
    save_file({"outer.weight": torch.full((5, 12), torch.nan), "outer.bias": torch.zeros(5)}, file)
    with pytest.raises(RdError, match="not finite float32"):
        load_head(folder)
    file.write_bytes(good + bytes(1 << 17))
    with pytest.raises(RdError, match=r"bytes, head\.json describes"):
        load_head(folder)
    file.unlink()
    with pytest.raises(RdError, match=r"head\.safetensors is missing"):
        load_head(folder)


def test_only_a_head_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "thesis.txt").write_text("x")
    with pytest.raises(RdError, match=r"it holds thesis\.txt"):
        save_head(tmp_path / "h", TaskHead(config_of("units")))
    head = TaskHead(config_of("units"))
    save_head(tmp_path / "g", head)
    save_head(tmp_path / "g", TaskHead(dataclasses.replace(head.config, student_name="again")))
    assert load_head(tmp_path / "g").config.student_name == "again"
