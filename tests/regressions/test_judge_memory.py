"""The judge held every pair of samples: 20,000 samples against two baselines of as many took 610 MB."""

from __future__ import annotations

import tracemalloc

import numpy as np
from reuse_distill.devices.judging.judge import compare
from reuse_distill.devices.judging.series_stability import classify


def peak_mb(samples: int) -> float:
    """Most memory that judging a run of ``samples`` against three of as many takes beyond the samples, MB."""
    rng = np.random.default_rng(0)
    runs = [5.0 * np.exp(0.05 * rng.standard_normal(samples)) for _ in range(4)]
    tracemalloc.start()
    try:
        stability = classify(runs[-1])
        assert compare(runs[:3], runs[-1], stability=stability).verdict in ("pass", "unmeasured")
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def test_memory_of_the_judge_is_linear_in_the_samples_and_small():
    small, large = peak_mb(5_000), peak_mb(20_000)
    print(f"5,000 samples {small:.2f} MB, 20,000 samples {large:.2f} MB")
    assert large < 10.0
    assert large < 5 * small  # four times the samples
