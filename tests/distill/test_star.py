"""STaR losses: against the equations in NumPy, and the invariants that the normalisation promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from reuse_distill.distill.recipe import load_recipe
from reuse_distill.distill.star import attention_distance, gram, gram_distance
from reuse_distill.distill.training import RunSettings, run
from reuse_distill.distill.training.run_folder import read_metrics


def test_gram_distance_is_the_equation_over_valid_frames() -> None:
    random = np.random.default_rng(0)
    student, teacher = random.standard_normal((2, 9, 6)), random.standard_normal((2, 9, 10))
    lengths = (9, 5)
    padding = torch.tensor([[f >= n for f in range(9)] for n in lengths])
    ours, theirs = (torch.from_numpy(x.astype(np.float32)) for x in (student, teacher))
    got = gram_distance(gram(ours, ours), gram(theirs, theirs), padding, frames=torch.tensor(14.0))
    expected = 0.0
    for row, n in enumerate(lengths):
        s, t = student[row, :n], teacher[row, :n]
        expected += n / 14 * np.mean((s @ s.T / 6 - t @ t.T / 10) ** 2)
    assert float(got) == pytest.approx(expected, rel=1e-5)
    plain = gram_distance(
        gram(ours, ours, normalisation="none"), gram(theirs, theirs, normalisation="none"), padding,
        frames=torch.tensor(14.0), normalisation="none",
    )  # fmt: skip
    expected = sum(
        n / 14 * np.sum((student[r, :n] @ student[r, :n].T - teacher[r, :n] @ teacher[r, :n].T) ** 2)
        for r, n in enumerate(lengths)
    )
    assert float(plain) == pytest.approx(expected, rel=1e-5)


def test_repeated_channels_change_nothing() -> None:
    x = torch.randn(1, 7, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(gram(x, x), gram(x.repeat(1, 1, 3), x.repeat(1, 1, 3)), atol=1e-6)


def test_attention_distance_is_kl_and_ignores_padding() -> None:
    maps = torch.softmax(torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1)), -1)[:, 0]
    padding = torch.tensor([[False] * 4, [False, False, True, True]])
    assert float(attention_distance(maps, maps, padding, frames=torch.tensor(6.0))) == pytest.approx(0, abs=1e-7)
    other = maps.flip(-1).clone()
    first = attention_distance(other, maps, padding, frames=torch.tensor(6.0))
    other[1, 2:] = 0.25
    assert torch.equal(first, attention_distance(other, maps, padding, frames=torch.tensor(6.0)))
    t, s = maps.double().numpy(), maps.flip(-1).double().numpy()
    expected = (np.sum(t[0] * np.log(t[0] / s[0])) + np.sum(t[1, :2] * np.log(t[1, :2] / s[1, :2]))) / 6
    assert float(first) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "overrides", [[], ["loss.attention_weight=1"], ["loss.intra_weight=0", "loss.normalisation=none"]]
)
def test_a_student_without_heads_learns_from_relations(
    tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path, overrides: list[str]
) -> None:
    how = ["loss.kind=star", "student.changes.head_width=null", "training.steps=40", "optimiser.lr=5e-3", *overrides]
    settings = RunSettings(tiny_teacher, audio_folder, tmp_path / "run", device="cpu")
    run(load_recipe(str(small_recipe), how), settings)
    rows = read_metrics(tmp_path / "run")
    first, last = (np.mean([row["loss"] for row in part]) for part in (rows[:5], rows[-5:]))
    assert last < 0.85 * first
    assert ("attention" in rows[0]) == ("loss.attention_weight=1" in overrides)
    assert ("intra" in rows[0]) == ("loss.intra_weight=0" not in overrides)


def test_the_hint_loss_falls_too(tiny_teacher: Path, audio_folder: Path, small_recipe: Path, tmp_path: Path) -> None:
    settings = RunSettings(tiny_teacher, audio_folder, tmp_path / "run", device="cpu")
    run(load_recipe(str(small_recipe), ["loss.kind=hint", "training.steps=40", "optimiser.lr=5e-3"]), settings)
    rows = read_metrics(tmp_path / "run")
    assert np.mean([r["loss"] for r in rows[-5:]]) < 0.9 * np.mean([r["loss"] for r in rows[:5]])
