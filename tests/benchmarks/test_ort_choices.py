"""``benchmarks.ort_choices`` on the shipped step: every option opens and keeps its features, the profile adds up."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import ort_choices

STEP = Path(__file__).resolve().parents[2] / "runtime" / "bundles" / "pocket-stream" / "model.onnx"


def test_options_are_compared_on_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_choices, "STEPS", 1)
    chosen = (ort_choices.PLAIN, "graph optimisation: none", "weights not prepacked", "GELU as polynomial")
    monkeypatch.setattr(ort_choices, "SESSIONS", {name: ort_choices.SESSIONS[name] for name in chosen})
    rows = ort_choices.compared(STEP, {"the same file": STEP}, repeats=2)
    assert set(rows) == {*chosen, "the same file"}
    assert rows[ort_choices.PLAIN]["times_as_fast"]["median"] == 1.0
    assert all(row["cosine"] > 0.9999 and row["step_ms"]["median"] > 0 for row in rows.values())


def test_the_profile_counts_every_operator_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_choices, "PROFILED_STEPS", 3)
    operators = ort_choices.profile(STEP)
    assert sum(row["share"] for row in operators.values()) == pytest.approx(1)
    assert operators["Softmax"]["in_a_step"] == 4  # three maps of six layers, every second one reused, and a head
