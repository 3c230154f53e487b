"""Fronts and winners, against their definitions."""

from __future__ import annotations

import numpy as np
from reuse_distill.distill.tradeoff.results import front, winner, within


def test_a_front_is_what_nothing_beats() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        costs = {str(i): float(v) for i, v in enumerate(random.integers(1, 8, 12))}
        errors = {name: float(random.integers(1, 8)) for name in costs}
        kept = front(costs, errors)
        beaten = {
            name
            for name in costs
            for other in costs
            if costs[other] <= costs[name]
            and errors[other] <= errors[name]
            and (costs[other], errors[other]) != (costs[name], errors[name])
        }
        assert set(kept) == set(costs) - beaten
        assert [costs[name] for name in kept] == sorted(costs[name] for name in kept)


def row(name: str, seconds: float | None, high: float | None, error: float = 0.1) -> dict:
    loss = None if high is None else {"value": high - 0.01, "low": high - 0.02, "high": high}
    return {"name": name, "processor_s": seconds, "loss": loss, "error": {"value": error}}


def test_a_winner_is_the_cheapest_within_the_limit() -> None:
    rows = [row("whole", 3.0, 0.0), row("small", 1.0, 0.2), row("middle", 2.0, 0.05), row("untimed", None, 0.0)]
    assert [one["name"] for one in within(rows, 0.05)] == ["whole", "middle", "untimed"]
    assert winner(rows, "time", 0.05)["name"] == "middle"
    assert winner(rows, "time", 0.01)["name"] == "whole"
    assert winner(rows, "time", 1.0)["name"] == "small"
    assert winner([row("unknown", 1.0, None)], "time", 1.0) is None
    assert winner([row("a", 1.0, 0.0, 0.3), row("b", 1.0, 0.0, 0.2)], "time", 0.1)["name"] == "b"
