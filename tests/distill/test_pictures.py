"""What the loss curves show: every term, every layer, and nothing of steps that left a layer out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from reuse_distill.distill import pictures

SAME = {"epoch": 0.0, "lr": 1e-3, "grad_norm": 1.0, "audio_s": 6.0, "wall_s": 1.0}


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The figures that were drawn, in place of files."""
    figures: list = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure) or path)
    return figures


def labels(axis) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_terms_and_layers_are_drawn_where_they_are_numbers(drawn: list) -> None:
    rows = [
        {
            "step": 1.0,
            **SAME,
            "loss": 3.0,
            "masking": 2.0,
            "star": 1.0,
            "masking_layer_1": 4.0,
            "star_layer_1": math.nan,
        },
        {"step": 2.0, **SAME, "loss": 2.0, "masking": 1.0, "star": 1.0, "masking_layer_1": 3.0, "star_layer_1": 5.0},
    ]
    pictures.loss_curve(rows, Path("loss.svg"), held_out=[{"step": 2.0, "loss": 2.5}])
    left, right = drawn[0].axes
    assert labels(left) == ["loss", "masking", "star", "loss, held out"]
    assert labels(right) == ["masking layer 1", "star layer 1"]
    assert [list(line.get_ydata()) for line in right.lines] == [[4.0, 3.0], [5.0]]
    assert list(right.lines[1].get_xdata()) == [2.0]
    assert {axis.get_xlabel() for axis in (left, right)} == {"step"}


def test_a_loss_without_layers_is_one_picture(drawn: list) -> None:
    pictures.loss_curve([{"step": 1.0, **SAME, "loss": 3.0}], Path("loss.svg"))
    (axis,) = drawn[0].axes
    assert labels(axis) == ["loss"] and axis.get_title() == "loss"
