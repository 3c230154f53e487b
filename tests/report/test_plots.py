"""Plots: what is drawn stands where the numbers say, inside the drawing, and is readable on a dark screen."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reuse_distill.report.drawing import svg
from reuse_distill.report.drawing.plots import Line, Mark, bar_plot, histogram, line_plot, run_history, timeline
from reuse_distill.report.page import Badge, Html, Tile, facts, figures, notes, page, section, table, tiles

LATENCIES = np.random.default_rng(0).lognormal(1.0, 0.3, 400)


def points(picture: str) -> list[list[tuple[float, float]]]:
    paths = [one.get("d", "") for one in ET.fromstring(picture).iter("path")]
    numbers = [[float(n) for n in re.findall(r"-?\d+\.?\d*", path)] for path in paths]
    return [list(zip(found[::2], found[1::2], strict=True)) for found in numbers]


def extents(picture: str) -> list[tuple[str, float, float, float]]:
    """Every horizontal text: its words, left and right edge and baseline."""
    found = []
    for one in ET.fromstring(picture).iter("text"):
        words = one.text or ""
        width, x = svg.CHARACTER_PX * len(words), float(one.get("x", "nan"))
        left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[one.get("text-anchor", "start")] * width
        found.append((words, left, left + width, float(one.get("y", "nan"))))
    return found


def assert_readable(picture: str) -> None:
    """No text leaves the drawing and none lies on another one."""
    _, _, width, height = map(float, ET.fromstring(picture).get("viewBox", "").split())
    texts = extents(picture)
    for words, left, right, y in texts:
        assert left >= -1 and right <= width + 1 and 8 <= y <= height, words
    for i, (words, left, right, y) in enumerate(texts):
        for other, other_left, other_right, other_y in texts[i + 1 :]:
            apart = right <= other_left + 1 or other_right <= left + 1 or abs(y - other_y) >= 11
            assert apart, (words, other)


def test_higher_values_stand_higher_and_inside_the_frame() -> None:
    drawn = points(line_plot([Line("a", ((0, 1.0), (5, 3.0), (10, 2.0)), "#123")], x_title="x", y_title="y"))[0]
    xs, ys = [x for x, _ in drawn], [y for _, y in drawn]
    assert xs == sorted(xs)
    assert ys[1] < ys[2] < ys[0]
    assert min(xs) >= 20 and max(xs) <= svg.WIDTH - svg.RIGHT
    assert min(ys) >= 16 and max(ys) <= svg.HEIGHT - svg.BOTTOM


def test_logarithmic_axis_has_equal_steps_and_a_floor() -> None:
    line = Line("a", ((0, 1e-1), (1, 1e-2), (2, 1e-3), (3, 0.0)), "#123")
    ys = [y for _, y in points(line_plot([line], x_title="x", y_title="y", log=True, floor=1e-4))[0]]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.2)
    assert ys[3] <= svg.HEIGHT - svg.BOTTOM


def test_flat_line_stays_flat() -> None:
    line = Line("a", ((0, 5.0), (1, 5.1)), "#123")
    ys = [y for _, y in points(line_plot([line], x_title="", y_title="", log=True))[0]]
    assert abs(ys[0] - ys[1]) < 5


def test_infinite_values_are_left_out_and_marks_are_labelled() -> None:
    line = Line("a", ((0, 1.0), (1, float("nan")), (2, 2.0)), "#123")
    picture = line_plot([line], x_title="x", y_title="y", marks=[Mark("bound 3", 3.0, "#f00")])
    assert len(points(picture)[0]) == 2
    assert "bound 3" in picture


def test_every_plot_keeps_its_words_inside_and_apart() -> None:
    many = [Line(f"masking layer {n}", ((0, 1.0), (10, 2.0 + n)), svg.BLUE) for n in range(1, 13)]
    marks = [Mark("p50", 2.70, svg.INK), Mark("p99", 2.72, svg.INK), Mark("limit p99", 2.74, svg.RED)]
    runs = [(f"11-28 18:{i:02d}", 1.0, 1.1, 1.3) for i in range(6)]
    for picture in (
        line_plot(many, x_title="step", y_title="largest absolute difference from torch"),
        histogram(LATENCIES, marks),
        timeline(np.arange(400) * 0.16, LATENCIES, deadline_ms=8.0, clocks=[(0.0, 2.4e9), (60.0, 1.2e9)], hot=True),
        run_history([*runs, ("this run", 1.0, 1.2, 1.4)], judged="regressed"),
        bar_plot([("positional convolution", 1e-3, svg.AMBER), ("layer 1", 2e-5, svg.BLUE)], label="drift"),
    ):
        assert_readable(picture)


@given(
    st.lists(st.tuples(st.floats(-1e4, 1e6), st.floats(1e-9, 1e6)), min_size=2, max_size=20),
    st.booleans(),
)
def test_labels_stay_inside_whatever_the_numbers_are(values, log) -> None:
    assert_readable(line_plot([Line("a", tuple(values), svg.BLUE)], x_title="seconds", y_title="ms", log=log))


def test_every_colour_of_a_drawing_has_a_dark_form() -> None:
    pictures = histogram(LATENCIES, [Mark("p99", 6.0, svg.RED)]) + timeline(
        np.arange(400.0), LATENCIES, deadline_ms=8.0, clocks=[(0.0, 2e9), (9.0, 1e9)]
    )
    assert set(re.findall(r"#[0-9a-f]{6}", pictures)) <= set(svg.DARK)
    rules = page("t", heading="h", body="")
    for light, dark in svg.DARK.items():
        assert f'svg [fill="{light}"]{{fill:{dark}}}' in rules


def test_colours_stand_out_from_the_page_in_both_modes() -> None:
    """Contrast of text colours to the card: at least 4.5 (WCAG 2, AA)."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    for colour in (svg.INK, svg.BLUE, svg.RED, svg.GREEN):
        assert contrast(colour, svg.PAPER) >= 4.5, colour
    for colour in (svg.INK, svg.BLUE, svg.RED, svg.AMBER, svg.GREEN):
        assert contrast(svg.DARK[colour], svg.DARK[svg.PAPER]) >= 4.5, colour


def test_a_drawing_as_a_file_stands_alone() -> None:
    picture = line_plot([Line("a", ((0, 1.0), (1, 2.0)), svg.BLUE)], x_title="x", y_title="y")
    root = ET.fromstring(svg.file_text(svg.arranged([("one", picture), ("two", picture)], columns=2, label="both")))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len([one for one in root.iter() if one.tag.endswith("}svg")]) == 3


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
