"""One-dimensional k-means: a table of 2^bits values that a weight tensor is best rounded to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

ITERATIONS = 100


def palette(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(table [2^bits], indices uint8 [values.size]) that minimise the squared error locally, by Lloyd's iterations.

    On sorted values every cluster is a range, so an iteration costs one search per border. Deterministic: it starts
    from the quantiles, half of them, and an even spread over the range, the other half.
    """
    ordered = np.sort(values.ravel().astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    count = 1 << bits
    quantiles = np.quantile(ordered, (np.arange(count // 2) + 0.5) / (count // 2))
    table = np.sort(np.concatenate([quantiles, np.linspace(ordered[0], ordered[-1], count - count // 2)]))
    for _ in range(ITERATIONS):
        borders = np.searchsorted(ordered, (table[1:] + table[:-1]) / 2)
        edges = np.concatenate([[0], borders, [len(ordered)]])
        sizes = np.diff(edges)
        means = np.where(sizes > 0, np.diff(sums[edges]) / np.maximum(sizes, 1), table)
        if np.array_equal(means, table):
            break
        table = np.sort(means)
    stored = table.astype(values.dtype)
    middles = (stored[1:].astype(np.float64) + stored[:-1]) / 2
    return stored, np.searchsorted(middles, values.ravel()).astype(np.uint8)


def palette_function(bits: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """``palette`` in the form that coremltools calls."""
    return lambda values: palette(values, bits)
