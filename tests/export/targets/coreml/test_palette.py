"""One-dimensional k-means."""

from __future__ import annotations

import numpy as np
import pytest
from reuse_distill.export.targets.coreml.compress import palette


def _error(values: np.ndarray, table: np.ndarray, indices: np.ndarray) -> float:
    return float(np.square(values - table[indices]).mean())


@pytest.mark.parametrize("bits", [4, 6])
def test_better_than_an_even_grid(bits: int) -> None:
    values = np.random.default_rng(0).standard_t(4, 5000).astype(np.float32)
    table, indices = palette(values, bits)
    assert table.shape == (1 << bits,) and table.dtype == np.float32 and indices.dtype == np.uint8
    even = np.linspace(values.min(), values.max(), 1 << bits)
    nearest = np.abs(values[:, None] - even).argmin(1)
    assert _error(values, table, indices) < 0.6 * _error(values, even, nearest)


def test_every_value_takes_its_nearest_entry() -> None:
    values = np.random.default_rng(1).normal(size=800).astype(np.float16)
    table, indices = palette(values, 4)
    distance = np.abs(values.astype(np.float64)[:, None] - table.astype(np.float64))
    assert np.allclose(distance[np.arange(800), indices], distance.min(1))


def test_few_values_are_kept_exactly() -> None:
    values = np.repeat(np.array([-2.0, 0.5, 3.0], np.float32), 50)
    table, indices = palette(values, 4)
    assert np.array_equal(table[indices], values)


def test_the_same_every_time() -> None:
    values = np.random.default_rng(2).normal(size=300).astype(np.float32)
    assert np.array_equal(palette(values, 6)[1], palette(values.copy(), 6)[1])
