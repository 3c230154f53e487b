"""The page of a trade-off, and its scatter plots."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from reuse_distill.report.drawing.scatter import LevelLine, ScatterPoint, scatter_plot
from reuse_distill.report.drawing.svg import BLUE
from reuse_distill.report.tradeoff_page import tradeoff_page
from reuse_distill.report.tradeoff_plots import family, tradeoff_picture, tradeoff_table


def interval(value: float) -> dict:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def row(name: str, method: str | None, *, seconds: float, error: float, **changes: object) -> dict:
    return {
        "name": name, "method": method, "ratio": [0.5] if method else [], "schedule": "1", "recover": 0, "fresh": None,
        "gate_steps": 0,
        "precision": "fp32", "status": "measured", "reason": None, "parameters": 5_000_000,
        "nonzero_parameters": 5_000_000, "superb_macs": 60e9, "artifact_bytes": 5_700_000, "kind": "streaming",
        "chunk_frames": 8, "error": interval(error), "loss": interval(error - 0.05), "processor_s": seconds,
        "probe_errors": {"label: digits/manifest.csv": interval(error)}, "cosine_to_student": 0.9999,
        "cosine_to_original": None, "faster": {"median": 1.2, "p10": 1.1, "p90": 1.3},
        "by_length": {"2": {"processor_s": 2 * seconds}, "10": {"processor_s": seconds}}, **changes,
    }  # fmt: skip


FAILED = ("by_length", "error", "loss", "processor_s", "faster", "nonzero_parameters", "superb_macs", "artifact_bytes")


def results() -> dict:
    points = [
        row("whole", None, seconds=0.010, error=0.05),
        row("rows", "rows", seconds=0.008, error=0.06, nonzero_parameters=4_000_000),
        {**row("<b>", "2:4", seconds=0, error=0), "status": "failed", "reason": "<script>", **dict.fromkeys(FAILED)},
    ]
    metrics = ("parameters", "macs", "time", "size")
    figures = {"million_parameters": 94.7, "superb_gmacs": None, "superb_overall": 80.8, "source": "x"}
    models = [{"name": "HuBERT", **figures}, {"name": "ARM", **figures, "superb_gmacs": 502.0}]
    probe = {"data": "label: digits/manifest.csv", "measure": "accuracy", "split": "given", "train": 9, "test": 9}
    return {
        "name": "mine", "summary": "s", "student": "pocket-stream", "baseline": "whole", "limit": 0.05,
        "points": points, "winners": dict.fromkeys(metrics, "rows") | {"macs": None},
        "fronts": {metric: ["rows", "whole"] for metric in metrics}, "references": {"log-mel": interval(0.2)},
        "probes": [probe],
        "smaller_and_faster": [
            {"precision": "fp32", "count": "MACs", "pairs": 4, "faster": {"2": 1, "10": 3}, "exceptions": [["a", "b"]]}
        ],
        "shares": {"train": 0.2, "test": 1.0}, "published": {"note": "elsewhere", "models": models}, "search": None,
        "timing": {"clock": "c", "repeats": 3, "seconds": 2.0, "machine": {
            "processor": "p", "system": "s", "python": "3", "threads": 1, "versions": {"numpy": "2"}}},
    }  # fmt: skip


def test_the_page_names_winners_failures_and_what_is_published() -> None:
    page = tradeoff_page(results())
    assert "2 measured, 1 failed" in page and "published, not measured" in page
    assert "&lt;script&gt;" in page and "<script>" not in page and "<b>:" not in page
    assert page.count("<svg") == 8, "four costs, two lengths of utterances, and two of published models"
    for words in ("Utterances of 2 s", "faster at 10 s", "25%", "75%", "a than b"):
        assert words in page
    assert "4.00 of 5.00" in page and "unmeasured" in page and "1.20 (1.10 to 1.30)" in page
    assert "+1.0 [" in page and "5.0 [4.0, 6.0]" in page
    assert "1.28" in page, "ms of a step of 160 ms at 8 ms per second"


def test_the_picture_is_a_drawing_of_all_costs() -> None:
    picture = tradeoff_picture(results())
    assert ET.fromstring(picture).tag.endswith("svg") and len(picture) < 150_000
    for words in ("parameters that are not zero", "GMACs", "artifact, MB", "processor time", "log-mel"):
        assert words in picture


def test_the_table_has_every_point() -> None:
    lines = tradeoff_table(results()).splitlines()
    assert all(line.count("|") == 12 for line in lines[:5]) and len(lines) == 9
    assert "| whole | nothing | fp32 | 5.00 | 60.0 | 5.70 | 1.20 (1.10 to 1.30) |" in lines[2]
    assert "failed: &lt;script>" in lines[4] and "log-mel: 20.0" in lines[7] and "macs: unmeasured" in lines[6]


def test_families() -> None:
    for method, fresh, expected in (
        (None, None, "uncompressed"),
        (None, {"ffn_width": 8}, "other"),
        ("heads+rows", None, "several"),
        ("2:4", None, "weights"),
        ("gates", None, "several"),
        ("new", None, "other"),
    ):
        assert family({"method": method, "fresh": fresh}) == expected


def points(ys: list[float]) -> list[ScatterPoint]:
    return [ScatterPoint(str(i), "t", 1 + 0.001 * i, y, BLUE, 0.9 * y, 1.1 * y) for i, y in enumerate(ys)]


def test_labels_of_neighbours_do_not_cover_each_other() -> None:
    picture = scatter_plot(points([5, 5.01, 5.02, 9]), front=["0"], x_title="x", y_title="y")
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="middle"[^>]*font-size="10">(\d)<', picture)
    places = [(float(x), float(y)) for x, y, _ in found]
    assert [label for *_, label in found] == ["0", "1", "2", "3"]
    for i, one in enumerate(places):
        for other in places[:i]:
            assert abs(one[0] - other[0]) > 5 or abs(one[1] - other[1]) > 8


def test_errors_far_apart_have_a_logarithmic_axis() -> None:
    level = [LevelLine("limit", 10)]
    near, far = (
        scatter_plot(points(ys), x_title="x", y_title="y", levels=level, floor=0.1) for ys in ([5, 9], [1, 60])
    )

    def heights(picture: str) -> list[float]:
        return [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', picture)]

    assert ">10<" in far and "limit" in near
    assert all(0 < y < 330 for y in heights(near) + heights(far))
    assert ET.fromstring(far) is not None
