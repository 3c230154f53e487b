"""A prepared student is the same function with fewer operations."""

from __future__ import annotations

import pytest
import torch
from reuse_distill.export.capture.simplify import FusedTimeNorm, prepared
from torch import nn


@pytest.mark.parametrize("name", ["shared", "renormalised", "stream", "fit", "distil"])
def test_the_same_function(name: str, workshop, noise) -> None:
    student, wave = workshop.student(name), torch.from_numpy(noise(9000))[None]
    before = {key: value.clone() for key, value in student.state_dict().items()}
    ready = prepared(student, student.config.layers)
    with torch.no_grad():
        ours, theirs = ready(wave), student(wave)
    for a, b in zip([*ours.layers, *ours.projections], [*theirs.layers, *theirs.projections], strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items()), "a copy"


def test_weight_norm_and_scale_are_folded(workshop) -> None:
    ready = prepared(workshop.student("shared"), 4)
    assert type(ready.encoder.pos_conv[0]) is nn.Conv1d
    assert isinstance(ready.feature_extractor.conv_layers[0][2], FusedTimeNorm)
    assert [layer.self_attn.scale for layer in ready.encoder.layers if not layer.self_attn.reuse] == [
        1.0,
        1.0,
    ]
    assert not ready.training
    assert not any(p.requires_grad for p in ready.parameters())


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_layers_that_nobody_asked_for_are_cut(depth: int, workshop, noise) -> None:
    student, wave = workshop.student("shared"), torch.from_numpy(noise(9000))[None]
    ready = prepared(student, depth)
    assert (ready.config.layers, len(student.encoder.layers), student.config.layers) == (depth, 4, 4)
    assert ready.config.reuse_layers == ((2,) if depth > 1 else ())
    with torch.no_grad():
        ours, theirs = ready(wave), student(wave)
    assert (len(ours.layers), len(ours.projections)) == (depth, depth)
    torch.testing.assert_close(ours.projections[-1], theirs.projections[depth - 1], atol=2e-5, rtol=0)


def test_fused_norm_equals_group_norm_and_keeps_masks(workshop) -> None:
    norm = workshop.student("shared").feature_extractor.conv_layers[0][2]
    fused, x = FusedTimeNorm(norm), torch.randn(1, 8, 90, generator=torch.Generator().manual_seed(2)) * 3 + 1
    torch.testing.assert_close(fused(x), norm(x), atol=1e-5, rtol=1e-5)
    valid = torch.arange(90)[None] < 40
    torch.testing.assert_close(fused(x, valid), norm(x, valid))
