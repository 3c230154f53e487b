"""The masking distillation loss against the reference: every case of golden/loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reuse_distill.distill.losses import MaskingTerms, masking_distillation

TERMS = (
    "mask_hint_loss",
    "unmask_hint_loss",
    "mask_rec_loss",
    "unmask_rec_loss",
    "hint_loss",
    "rec_loss",
    "total",
)
CASES = [
    f"{prefix}_{kind}_rand{layers}_gradscale{scale}"
    for prefix in ("batch", "w0")
    for kind in ("mse", "l1")
    for layers in ("012", "02")
    for scale in (0, 1)
]


def values(terms: MaskingTerms) -> tuple[float, ...]:
    tensors = (
        terms.mask_hint,
        terms.unmask_hint,
        terms.mask_rec,
        terms.unmask_rec,
        terms.hint,
        terms.rec,
        terms.total,
    )
    return tuple(float(t.detach()) for t in tensors)


def settings_of(case: str) -> dict:
    _, kind, layers, _ = case.split("_")
    return {"kind": kind, "hint_layers": [int(c) for c in layers.removeprefix("rand")], "count": "public"}


def teacher_layers(golden_dir: Path, prefix: str) -> tuple[torch.Tensor, torch.Tensor]:
    stored = np.load(golden_dir / "teacher_hubert_tiny/expected_fairseq.npz", allow_pickle=False)
    plain, masked = (
        torch.stack([torch.from_numpy(stored[f"{prefix}_{which}_layer_results_{layer}"]) for layer in range(4)])
        for which in ("unmasked", "masked")
    )
    return plain, masked


def test_all_cases_are_there(golden_dir: Path) -> None:
    assert set(json.loads((golden_dir / "loss/loss.json").read_text())["cases"]) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_terms_from_stored_projections(golden_dir: Path, case: str) -> None:
    prefix = case.split("_")[0]
    expected = json.loads((golden_dir / "loss/loss.json").read_text())["cases"][case]
    arrays = np.load(golden_dir / "loss/loss_arrays.npz", allow_pickle=False)
    student = [torch.from_numpy(arrays[f"{prefix}.student_projections_{layer}"]) for layer in range(4)]
    mask = torch.from_numpy(arrays[f"{prefix}.mask_indices"])
    plain, masked = teacher_layers(golden_dir, prefix)
    padding = torch.zeros_like(mask)
    if prefix == "batch":
        padding[0, 99:] = True
    terms = masking_distillation(student, plain, masked, mask, padding, **settings_of(case))
    assert values(terms) == pytest.approx([expected[name] for name in TERMS], rel=1e-5)
    ours = masking_distillation(student, plain, masked, mask, padding, **{**settings_of(case), "count": "valid"})
    same = float(ours.total) == pytest.approx(expected["total"], rel=1e-4)
    assert same == (prefix == "w0"), "without padding both counts agree, with padding they do not"


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("w0")])
def test_single_utterance_end_to_end_with_gradients(golden_dir: Path, case: str) -> None:
    """Waveform -> teacher, student, loss, gradients of every parameter."""
    soundfile = pytest.importorskip("soundfile")
    from reuse_distill.distill.teachers import open_teacher
    from reuse_distill.student.checkpoints.public import load_public_checkpoint

    expected = json.loads((golden_dir / "loss/loss.json").read_text())["cases"][case]
    arrays = np.load(golden_dir / "loss/loss_arrays.npz", allow_pickle=False)
    wave = torch.from_numpy(soundfile.read(golden_dir / "inputs/w0.wav", dtype="float32")[0])[None]
    mask = torch.from_numpy(arrays["w0.mask_indices"])
    folder = golden_dir / "armhubert_tiny"
    model = load_public_checkpoint(folder / "checkpoint-epoch=01.ckpt", folder / "config.yaml")
    model.eval().requires_grad_(True)
    plain, masked = open_teacher(golden_dir / "teacher_hubert_tiny/hf").both(wave, None, mask)
    output = model(wave, mask=mask, layer_grad_scale=case.endswith("1"))
    terms = masking_distillation(output.projections, plain, masked, mask, output.padding, **settings_of(case))
    assert values(terms) == pytest.approx([expected[name] for name in TERMS], rel=1e-5)
    if "grad_l2" not in expected:
        return
    terms.total.backward()
    norms = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    checked = 0
    for name, norm in expected["grad_l2"].items():
        if norm is None:  # a head that this case does not use
            assert name not in norms, name
        elif norm > 1e-4:  # below: k_proj.bias, whose gradient is zero in theory and noise in practice
            assert norms[name] == pytest.approx(norm, rel=1e-4), name
            checked += 1
    assert checked > 60
