"""Side-by-side timing: the contenders take turns in one process, so that a slow spell slows all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from reuse_distill.distill.tradeoff.side_by_side import Spread, machine, ratios, spread, take_turns

__all__ = ["Spread", "alternate", "machine", "ratios", "shown", "spread"]


def alternate(
    contenders: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of every call by the clock, ``repeats`` per contender, taken in turns."""
    return {name: one.wall_s for name, one in take_turns(contenders, repeats=repeats, warmup=warmup).items()}


def shown(ratio: Spread) -> str:
    """``3.41 (3.30 to 3.52)``: median, 10th and 90th percentile."""
    return f"{ratio['median']:.2f} ({ratio['p10']:.2f} to {ratio['p90']:.2f})"
