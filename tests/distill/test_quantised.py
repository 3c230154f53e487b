"""Quantisation-aware training: what is rounded, what the gradient sees, and that it gains what rounding lost."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from reuse_distill.distill.quantised import ActivationRange, QuantisedStudent, quantised_modules, rounded_weight
from reuse_distill.distill.recipe import load_recipe
from reuse_distill.distill.training import RunSettings, run
from reuse_distill.distill.training.run_folder import read_metrics
from reuse_distill.student import Student, load_checkpoint, preset


def test_weights_lie_on_the_grid_of_their_channel() -> None:
    weight = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rounded = rounded_weight(weight)
    steps = rounded.detach() / (weight.detach().flatten(1).abs().amax(1) / 127)[:, None, None]
    assert torch.allclose(steps, steps.round(), atol=1e-3) and steps.abs().max() <= 127.001
    assert 0 < (rounded - weight).abs().max() <= weight.abs().max() / 127 / 2 + 1e-6
    rounded.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_activations_are_rounded_inside_a_range_that_follows() -> None:
    activation = ActivationRange().train()
    x = torch.linspace(-1, 3, 1001, requires_grad=True)
    y = activation(x)
    assert len(y.detach().unique()) <= 256 and (y - x).abs().max() <= 4 / 255
    y.sum().backward()
    assert x.grad.mean() > 0.99
    activation.eval()
    wide = torch.tensor([-100.0, 0.0, 100.0], requires_grad=True)
    out = activation(wide)
    assert out[1] == 0 and out[0] > -1.1 and out[2] < 3.1, "zero is exact, what is outside is cut"
    out.sum().backward()
    assert wide.grad.tolist() == [0, 1, 0]


def test_the_quantised_student_is_near_the_float_one_and_shares_its_weights() -> None:
    torch.manual_seed(0)
    student = Student(dataclasses.replace(preset("tiny"), dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
                                          input_dropout=0.0))  # fmt: skip
    names = quantised_modules(student)
    assert "encoder.layers.0.fc1" in names and "feature_extractor.conv_layers.3.0" in names
    assert not any(n.startswith(("feature_extractor.conv_layers.0.", "encoder.pos_conv")) for n in names)
    wave = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(1))
    plain = student(wave).projections[-1]
    quantised = QuantisedStudent(student).train()
    rounded = quantised(wave).projections[-1]
    similarity = torch.nn.functional.cosine_similarity(plain, rounded, dim=-1).mean()
    assert 0.98 < similarity < 0.999999
    rounded.square().mean().backward()
    assert all(
        p.grad is not None for n, p in student.named_parameters() if "mask_emb" not in n and "proj_head" not in n
    )


def test_training_under_int8_resumes_exactly_and_saves_a_plain_student(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path, losses
) -> None:
    recipe = load_recipe(str(small_recipe), ["training.fake_quant=true"])
    whole = RunSettings(tiny_teacher, audio_folder, tmp_path / "whole", device="cpu")
    run(recipe, whole)
    parts = dataclasses.replace(whole, output=tmp_path / "parts")
    run(recipe, dataclasses.replace(parts, stop_after=4))
    student = run(recipe, dataclasses.replace(parts, resume=True))
    np.testing.assert_equal(losses(parts.output), losses(whole.output))
    assert set(load_checkpoint(student).state_dict()) == set(Student(recipe.student.config()).state_dict())
    float_run = dataclasses.replace(whole, output=tmp_path / "float")
    run(load_recipe(str(small_recipe)), float_run)
    first = [read_metrics(f)[0]["loss"] for f in (whole.output, float_run.output)]
    assert first[0] != first[1] and first[0] == pytest.approx(first[1], rel=0.02)
