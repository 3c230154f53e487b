"""Heads: DistilHuBERT's against the published arithmetic in NumPy, settings that do not go together."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, load_checkpoint, preset, save_checkpoint
from reuse_distill.student.heads import SplitHeads


def test_split_heads_are_a_hidden_layer_and_a_linear_one_each() -> None:
    torch.manual_seed(0)
    heads = SplitHeads(4, 6, 3)
    x = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    predicted = heads(torch.from_numpy(x))
    weights = {name: value.detach().numpy() for name, value in heads.named_parameters()}
    hidden = x @ weights["inner.weight"].T + weights["inner.bias"]
    gelu = np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))))(hidden)
    for n in range(3):
        expected = gelu[..., 4 * n : 4 * n + 4] @ weights["weight"][n] + weights["bias"][0, 0, n]
        assert np.allclose(predicted[n].detach().numpy(), expected, atol=1e-5)


def test_a_student_with_split_heads_predicts_its_targets_and_is_saved(tmp_path) -> None:
    torch.manual_seed(0)
    student = Student(preset("tiny-distil")).eval()
    assert student.config.targets == (2, 4, 6) and preset("tiny").targets == (1, 2, 3, 4, 5, 6)
    output = student(torch.randn(1, 8000))
    assert [x.shape for x in output.projections] == [(1, 24, 128)] * 3 and len(output.layers) == 2
    again = load_checkpoint(save_checkpoint(tmp_path / "s", student))
    assert again.config == student.config
    for a, b in zip(again.state_dict().values(), student.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_targets": ()}, "head_kind 'split' with head_targets"),
        ({"head_width": None}, "head_kind 'split' with head_targets"),
        ({"head_kind": "layerwise"}, r"head_kind 'layerwise' with head_targets \[2, 4, 6\]"),
        ({"head_kind": "splitt"}, "head_kind 'splitt' is unknown"),
        ({"head_targets": (4, 2)}, "are not layers in order"),
        ({"head_targets": (0, 2)}, "are not layers in order"),
    ],
)
def test_settings_that_do_not_go_together(changes, message: str) -> None:
    with pytest.raises(RdError, match=message):
        preset("tiny-distil", **changes)


def test_the_front_end_gets_a_share_of_its_gradient() -> None:
    torch.manual_seed(0)
    student = Student(preset("tiny-distil")).eval()
    wave = torch.randn(1, 4000)
    gradients = []
    for scale in (1.0, 0.1):
        student.zero_grad()
        sum(x.square().mean() for x in student(wave, front_end_grad_scale=scale).projections).backward()
        gradients.append([p.grad.clone() for p in student.parameters()])
    names = [name for name, _ in student.named_parameters()]
    for name, whole, tenth in zip(names, *gradients, strict=True):
        factor = 0.1 if name.startswith("feature_extractor.") else 1.0
        assert torch.allclose(tenth, factor * whole, rtol=1e-4, atol=1e-9), name
