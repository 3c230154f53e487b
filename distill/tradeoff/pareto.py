"""Which points are worth it: Pareto fronts of cost against error, and the cheapest point within a limit of loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reuse_distill.report.tradeoff_plots import COSTS


def front(costs: Mapping[str, float], errors: Mapping[str, float]) -> list[str]:
    """Names of the points that no other one beats: none costs no more and errs no more, and is better in one.

    Cheapest first. Points that are equal in both are all on the front.
    """
    ordered = sorted(costs, key=lambda name: (costs[name], errors[name]))
    best = float("inf")
    kept: list[str] = []
    for name in ordered:
        same = bool(kept) and costs[kept[-1]] == costs[name] and errors[kept[-1]] == errors[name]
        if errors[name] < best or same:
            kept.append(name)
            best = errors[name]
    return kept


def within(rows: Sequence[dict[str, Any]], limit: float) -> list[dict[str, Any]]:
    """Points whose error rose by no more than ``limit``, by the upper end of the interval of the difference.

    The baseline is always among them.
    """
    return [row for row in rows if row["loss"] is not None and row["loss"]["high"] <= limit]


def winner(rows: Sequence[dict[str, Any]], metric: str, limit: float) -> dict[str, Any] | None:
    """The cheapest point by ``metric`` (a key of ``COSTS``) within ``limit``; None where nothing was measured.

    Equal costs: the smaller error.
    """
    key = COSTS[metric].key
    rows = [row for row in within(rows, limit) if row[key] is not None]
    return min(rows, key=lambda row: (row[key], row["error"]["value"]), default=None)
