"""layer_grad_scale: the same values, scaled gradients."""

from __future__ import annotations

import math

import pytest
import torch
from reuse_distill.student import Student
from reuse_distill.student.layer import scale_gradient


@pytest.mark.parametrize(("index", "head"), [(0, 0.16), (1, 0.1875), (2, 2 / 9), (3, 0.25)])
def test_factors_of_four_layers(index: int, head: float) -> None:
    """m = (L - i) / (L - i + 1) for the trunk, m (1 - m) for the head: 0.16, 0.1875, 0.2222, 0.25."""
    x = torch.randn(3, requires_grad=True)
    trunk, to_head = scale_gradient(x, index=index, layers=4)
    assert torch.equal(trunk, x)
    assert torch.equal(to_head, x)
    (gradient,) = torch.autograd.grad(trunk.sum(), x, retain_graph=True)
    torch.testing.assert_close(gradient, torch.full((3,), (4 - index) / (5 - index)))
    (gradient,) = torch.autograd.grad(to_head.sum(), x)
    torch.testing.assert_close(gradient, torch.full((3,), head))


def gradient_of_layer(student: Student, wave: torch.Tensor, *, layer: int, head: int, scaled: bool) -> torch.Tensor:
    """Gradient of one head's output with respect to what layer ``layer`` (0-based) gives."""
    student.zero_grad()
    output = student(wave, layer_grad_scale=scaled)
    output.projections[head].square().sum().backward()
    return student.encoder.layers[layer].final_layer_norm.bias.grad.clone()


@pytest.mark.parametrize(("layer", "head"), [(i, j) for i in range(4) for j in range(i, 4)])
def test_what_reaches_a_layer_from_a_head(layer: int, head: int, small_config, randomised, noise) -> None:
    """m_j (1 - m_j) into head j, and m_k for every layer k from j - 1 down to i."""
    student = randomised(small_config(reuse_layers=())).requires_grad_(True)
    wave = noise(320 * 6 + 80)[None]
    keep = [(4 - i) / (5 - i) for i in range(4)]
    factor = keep[head] * (1 - keep[head]) * math.prod(keep[layer:head])
    plain = gradient_of_layer(student, wave, layer=layer, head=head, scaled=False)
    scaled = gradient_of_layer(student, wave, layer=layer, head=head, scaled=True)
    assert plain.abs().max() > 0
    torch.testing.assert_close(scaled, plain * factor, rtol=1e-9, atol=1e-12)


def test_values_do_not_change(small_config, randomised, noise) -> None:
    student, wave = randomised(small_config()), noise(320 * 6 + 80)[None]
    plain, scaled = student(wave), student(wave, layer_grad_scale=True)
    for a, b in zip([*plain.layers, *plain.projections], [*scaled.layers, *scaled.projections], strict=True):
        assert torch.equal(a, b)


def test_a_reused_map_is_a_second_way_that_is_not_scaled(small_config, randomised, noise) -> None:
    """As in the reference: head 3 reaches layer 1 through layer 2's output (scaled) and through its map (not)."""
    student, wave = randomised(small_config(reuse_layers=(4,))).requires_grad_(True), noise(320 * 6 + 80)[None]
    plain = gradient_of_layer(student, wave, layer=1, head=3, scaled=False)
    scaled = gradient_of_layer(student, wave, layer=1, head=3, scaled=True)
    through_outputs_only = plain * 0.25 * (2 / 3) * (3 / 4)
    assert float((scaled - through_outputs_only).abs().max()) > 1e-3 * float(plain.abs().max())
