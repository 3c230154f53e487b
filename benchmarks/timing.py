"""Side-by-side timing: the contenders take turns in one process, so that a slow spell slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from reuse_distill.distill.tradeoff.side_by_side import Spread, machine, ratios, spread

__all__ = ["Spread", "alternate", "machine", "ratios", "shown", "spread"]


def alternate(
    contenders: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of every call, ``repeats`` per contender, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + repeats):
        for name, call in contenders.items():
            began = time.perf_counter()
            call()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def shown(ratio: Spread) -> str:
    """``3.41 (3.30 to 3.52)``: median, 10th and 90th percentile."""
    return f"{ratio['median']:.2f} ({ratio['p10']:.2f} to {ratio['p90']:.2f})"
