"""Line plots: what is drawn stands where the numbers say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from reuse_distill.devices.lineplot import Line, Mark, line_plot
from reuse_distill.devices.page import Badge, Html, Tile, facts, figures, notes, page, section, table, tiles
from reuse_distill.devices.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH


def points(picture: str) -> list[list[tuple[float, float]]]:
    paths = [one.get("d", "") for one in ET.fromstring(picture).iter("path")]
    numbers = [[float(n) for n in re.findall(r"-?\d+\.?\d*", path)] for path in paths]
    return [list(zip(found[::2], found[1::2], strict=True)) for found in numbers]


def test_higher_values_stand_higher_and_inside_the_frame() -> None:
    drawn = points(line_plot([Line("a", ((0, 1.0), (5, 3.0), (10, 2.0)), "#123")], x_title="x", y_title="y"))[0]
    xs, ys = [x for x, _ in drawn], [y for _, y in drawn]
    assert xs == sorted(xs)
    assert ys[1] < ys[2] < ys[0]
    assert min(xs) >= LEFT and max(xs) <= WIDTH - RIGHT
    assert min(ys) >= TOP and max(ys) <= HEIGHT - BOTTOM


def test_logarithmic_axis_has_equal_steps_and_a_floor() -> None:
    line = Line("a", ((0, 1e-1), (1, 1e-2), (2, 1e-3), (3, 0.0)), "#123")
    ys = [y for _, y in points(line_plot([line], x_title="x", y_title="y", log=True, floor=1e-4))[0]]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.2)
    assert ys[3] <= HEIGHT - BOTTOM


def test_flat_line_stays_flat() -> None:
    ys = [
        y for _, y in points(line_plot([Line("a", ((0, 5.0), (1, 5.1)), "#123")], x_title="", y_title="", log=True))[0]
    ]
    assert abs(ys[0] - ys[1]) < 5


def test_infinite_values_are_left_out_and_marks_are_labelled() -> None:
    line = Line("a", ((0, 1.0), (1, float("nan")), (2, 2.0)), "#123")
    picture = line_plot([line], x_title="x", y_title="y", marks=[Mark("bound 3", 3.0, "#f00")])
    assert len(points(picture)[0]) == 2
    assert "bound 3" in picture


def test_page_escapes_everything_but_markup_that_says_so() -> None:
    evil = "<b>x</b>"
    parts = [
        page(evil, heading=evil, body="", about=evil),
        section(evil, "", where=evil, badge=Badge(evil)),
        tiles([Tile(evil, evil, evil)]),
        figures([(f"{evil}\n{evil}", "")]),
        facts([(evil, evil)]),
        table([evil], [[evil]]),
        notes([evil]),
    ]
    for part in parts:
        assert evil not in part
        assert "&lt;b&gt;" in part
    assert "<i>y</i>" in table(["a"], [[Html("<i>y</i>")]])


def test_nothing_to_note_is_no_box() -> None:
    assert notes([]) == ""
