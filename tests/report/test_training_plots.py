"""What the loss curves show: every term, every layer, and nothing of steps that left a layer out."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from reuse_distill.report import training_plots
from reuse_distill.report.training_plots import attention_maps, loss_curve, running_mean, similarity_matrix
from reuse_distill.runtime.errors import RdError

SAME = {"epoch": 0.0, "lr": 1e-3, "grad_norm": 1.0, "audio_s": 6.0, "wall_s": 1.0}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The lines of every plot that was drawn."""
    plots: list = []
    original = training_plots.line_plot
    monkeypatch.setattr(training_plots, "line_plot", lambda lines, **k: plots.append(lines) or original(lines, **k))
    return plots


def words(path: Path) -> list[str]:
    return [one.text or "" for one in ET.parse(path).getroot().iter(f"{SVG}text")]


def test_terms_and_layers_are_drawn_where_they_are_numbers(drawn: list, tmp_path: Path) -> None:
    first = {"loss": 3.0, "masking": 2.0, "star": 1.0, "masking_layer_1": 4.0, "star_layer_1": math.nan}
    second = {"loss": 2.0, "masking": 1.0, "star": 1.0, "masking_layer_1": 3.0, "star_layer_1": 5.0}
    rows = [{"step": 1.0, **SAME, **first}, {"step": 2.0, **SAME, **second}]
    path = loss_curve(rows, tmp_path / "loss.svg", held_out=[{"step": 2.0, "loss": 2.5}])
    left, right = drawn
    assert [one.label for one in left] == ["", "loss", "masking", "star", "loss, held out"]
    assert [one.label for one in right] == ["masking layer 1", "star layer 1"]
    assert [one.points for one in right] == [((1.0, 4.0), (2.0, 3.0)), ((2.0, 5.0),)]
    assert right[0].dash != right[1].dash
    assert {"loss, held out", "star layer 1", "Each layer against the teacher"} <= set(words(path))


def test_a_loss_without_layers_is_one_picture(drawn: list, tmp_path: Path) -> None:
    path = loss_curve([{"step": 1.0, **SAME, "loss": 3.0}], tmp_path / "loss.svg")
    assert len(drawn) == 1 and "Loss" in words(path)


def test_maps_and_similarity_are_files_of_their_own(tmp_path: Path) -> None:
    maps = [np.eye(8) for _ in range(8)]
    path = attention_maps(maps, [False, True] * 4, tmp_path / "maps.svg", seconds=3.0, title="attention")
    assert {"Layer 1", "Layer 2, reused"} <= set(words(path))
    cka = similarity_matrix(np.full((6, 12), 0.5).tolist(), tmp_path / "cka.svg", title="linear CKA")
    assert {"linear CKA", "12", "teacher layer →", "← student layer"} <= set(words(cka))


def test_running_mean_of_what_there_is() -> None:
    assert running_mean([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


def test_a_file_that_cannot_be_written_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RdError, match=r"loss\.svg was not written"):
        loss_curve([{"step": 1.0, **SAME, "loss": 3.0}], tmp_path / "file" / "loss.svg")
