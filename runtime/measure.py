"""What the steps of a stream cost on this machine."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ
from reuse_distill.runtime.latency import Latency
from reuse_distill.runtime.stats import quantile
from reuse_distill.runtime.stream import Engine

WARM_UP_STEPS = 8


def time_steps(engine: Engine, latency: Latency, *, steps: int, seed: int = 0) -> Latency:
    """Run ``steps`` steps of a fresh ``engine`` on noise after a warm-up; ``latency`` with what they cost."""
    rng = np.random.default_rng(seed)
    times_ms: list[float] = []
    while len(times_ms) < WARM_UP_STEPS + steps:
        engine.feed((0.1 * rng.standard_normal(SAMPLE_RATE_HZ)).astype(np.float32))
        while engine.ready:
            start = time.perf_counter()
            engine.step()
            times_ms.append(1000 * (time.perf_counter() - start))
    measured = times_ms[WARM_UP_STEPS : WARM_UP_STEPS + steps]
    return replace(
        latency,
        compute_p50_ms=quantile(measured, 0.5),
        compute_p99_ms=quantile(measured, 0.99),
        compute_max_ms=max(measured),
        measured_steps=len(measured),
    )
