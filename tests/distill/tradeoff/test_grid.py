"""Grids: what YAML may say, and what is refused with the point's name."""

from __future__ import annotations

from pathlib import Path

import pytest
from reuse_distill.distill.tradeoff.grid import TradeoffGrid, grid_names, load_grid
from reuse_distill.runtime.errors import RdError


def written(folder: Path, *points: str, more: str = "") -> str:
    lines = "\n".join(f"  - {point}" for point in points)
    (folder / "mine.yaml").write_text(f"summary: mine\n{more}\npoints:\n{lines}\n")
    return str(folder / "mine.yaml")


def test_shipped_grids() -> None:
    assert {"cpu", "toy"} <= set(grid_names())
    for name in grid_names():
        assert load_grid(name).names
    grid = load_grid("cpu")
    methods = {method for point in grid.points for method in point.methods}
    assert len(grid.points) >= 15 and methods >= {
        *("heads", "heads-data", "rows", "low-rank", "low-rank-data", "weights", "2:4")
    }
    assert any("+" in (point.method or "") for point in grid.points)


def test_a_ratio_and_a_schedule_may_be_plain_numbers(tmp_path: Path) -> None:
    grid = load_grid(written(tmp_path, "{name: a, method: heads+rows, ratio: 0.5, schedule: 2}"), ["recover=3"])
    point = grid.points[0]
    assert point.levels() == ((0.25, 0.25), (0.5, 0.5)) and grid.recovery_of(point) == 3
    assert grid.compared_with == "a" and grid.name == "mine"


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("{name: a, method: rows, ratio: 1.5}", "point 'a': --ratio 1.5 is not above 0 and below 1"),
        ("{name: a, method: rows, ratio: .nan}", "point 'a': --ratio nan is not above 0 and below 1"),
        ("{name: a, method: row, ratio: 0.5}", "point 'a': there is no compression method 'row'"),
        ("{name: a, method: heads+rows, ratio: [0.1, 0.2, 0.3]}", "point 'a': 3 ratios for 2 methods"),
        ("{name: a, method: rows}", "point 'a': 0 ratios for 1 methods"),
        ("{name: a, method: rows, ratio: 0.5, schedule: often}", "point 'a': --schedule often is no schedule"),
        ("{name: a, method: gates, ratio: 0.5}", "point 'a': gate_steps is 0 with gates"),
        ("{name: a, method: rows, ratio: 0.5, gate_steps: 5}", "point 'a': gate_steps is 5 with rows"),
        ("{name: a, method: gates, ratio: 0.5, gate_steps: 5, schedule: 2}", "point 'a': schedule is 2 with gates"),
        ("{name: a, ratio: 0.5}", "has a ratio, a schedule or recovery, but no method"),
        ("{name: a, method: rows, ratio: 0.5, recover: -1}", "point 'a': recover is -1"),
        ("{name: a, precision: int9}", "point 'a': precision is 'int9'"),
        ("{name: ../a}", "has no usable name"),
        ("{name: a, fresh: {ffn_width: 8}}", "point 'a' is fresh"),
        ("{name: a, methode: rows}", "unknown key 'methode'"),
        ("[a]", "expected an object"),
    ],
)
def test_points_that_are_not_possible(tmp_path: Path, point: str, message: str) -> None:
    with pytest.raises(RdError) as caught:
        load_grid(written(tmp_path, point))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("baseline: b", "baseline is 'b'"),
        ("mode: windows", "mode is 'windows'"),
        ("train_share: 0", "train_share is 0"),
        ("limit: .nan", "limit is nan"),
        ("repeats: 0", "repeats is 0"),
        ("recover: much", "expected int"),
    ],
)
def test_settings_that_are_not_possible(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(RdError) as caught:
        load_grid(written(tmp_path, "{name: a}", more=more))
    assert message in str(caught.value)


def test_names_are_used_once(tmp_path: Path) -> None:
    with pytest.raises(RdError, match="two points named 'a'"):
        load_grid(written(tmp_path, "{name: a}", "{name: a, method: rows, ratio: 0.5}"))
    with pytest.raises(RdError, match="has 0 points"):
        TradeoffGrid("none", "", ())
    with pytest.raises(RdError, match="there is no grid 'cpus'"):
        load_grid("cpus")
