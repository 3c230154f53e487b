"""The shipped weights: they load, are small, and their cards say what they must."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from reuse_distill.student import load_checkpoint
from reuse_distill.student.checkpoints.checkpoint import read_provenance

WEIGHTS = Path(__file__).resolve().parents[2] / "student" / "weights"
STUDENTS = {"tiny": 192, "pocket": 512, "pocket-stream": 512}  # and the width of their heads


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_hears(name: str) -> None:
    """Trained features follow the sound: another sound, other features; and all of them are numbers."""
    student = load_checkpoint(WEIGHTS / name)
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(16_000) / 16_000
    sounds = torch.stack([0.1 * torch.sin(2 * torch.pi * 220 * time), 0.1 * torch.randn(16_000, generator=generator)])
    with torch.no_grad():
        first, second = (student(s[None], context=student.config.context).projections[-1][0] for s in sounds)
    assert first.shape == (49, STUDENTS[name]) and first.isfinite().all() and second.isfinite().all()
    assert torch.nn.functional.cosine_similarity(first, second, dim=-1).mean() < 0.9


@pytest.mark.parametrize("name", STUDENTS)
def test_the_loss_fell_while_it_was_trained(name: str) -> None:
    """Far where the weights were drawn at random, a little where a run started from another student (``--init``)."""
    training = json.loads((WEIGHTS / name / "training.json").read_text(encoding="utf-8"))
    fall = 0.95 if training.get("init_sha256") else 0.7
    assert training["loss_last_tenth"] < fall * training["loss_first_tenth"]


@pytest.mark.parametrize("name", ["pocket", "pocket-stream"])
def test_the_checkpoint_is_the_best_on_held_out_speech(name: str) -> None:
    training = json.loads((WEIGHTS / name / "training.json").read_text(encoding="utf-8"))
    provenance = read_provenance(WEIGHTS / name)
    held_out = {int(step): loss for step, loss in training["validation_losses"]}
    assert held_out[provenance["step"]] == provenance["validation_loss"] == min(held_out.values())


@pytest.mark.parametrize("name", STUDENTS)
def test_cards_name_data_licence_and_limits(name: str) -> None:
    card = (WEIGHTS / name / "README.md").read_text(encoding="utf-8")
    made = ("python -m demo.make_weights", "toy") if name == "tiny" else ("rd-distill run pocket", "whisper-base")
    for text in ("LibriSpeech", "CC BY 4.0", *made, "Apache-2.0", "## Limits"):
        assert text in card, text


def test_everything_that_is_shipped_is_small_and_names_no_machine() -> None:
    bundle = WEIGHTS.parents[1] / "runtime" / "bundles"
    files = [path for root in (WEIGHTS, bundle) for path in root.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    for path in files:
        if path.suffix in (".json", ".md"):
            text = path.read_text(encoding="utf-8")
            assert "/work" not in text and "/home" not in text and "/tmp" not in text, path
