"""The published mask sampler where its public code ends in a traceback: no span, and a span as long as its row."""

from __future__ import annotations

import numpy as np
import pytest
from reuse_distill.distill.masks import SpanMask, draw_mask, public_mask_indices


@pytest.mark.parametrize("no_overlap", [True, False])
@pytest.mark.parametrize("selection", ["static", "uniform"])
def test_probability_0_hides_nothing(selection: str, no_overlap: bool) -> None:
    how = {"probability": 0.0, "span": 10, "min_spans": 0, "selection": selection, "no_overlap": no_overlap}
    mask = public_mask_indices((2, 50), [50, 30], random=np.random.RandomState(0), **how)
    assert mask.shape == (2, 50) and not mask.any()


def test_a_span_as_long_as_its_row_hides_the_row() -> None:
    how = {"probability": 0.5, "span": 10, "min_spans": 1, "min_gap": 0, "selection": "static"}
    assert public_mask_indices((1, 10), [10], random=np.random.RandomState(0), **how).all()


def test_the_settings_of_a_recipe_come_through() -> None:
    settings = SpanMask(probability=0.0, min_spans=0, sampler="public")
    assert not draw_mask(settings, [20, 10], 20, seed=[1, 2]).any()
