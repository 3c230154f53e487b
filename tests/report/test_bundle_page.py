"""The report of a bundle: what it states is what the manifest says, and nothing from outside is markup."""

from __future__ import annotations

import base64
import dataclasses
import re
import xml.etree.ElementTree as ET
import zlib

import numpy as np
import pytest
from reuse_distill.report.bundle_page import bundle_report, verdict, within_bound
from reuse_distill.report.bundle_plots import drift_plot, reuse_graph
from reuse_distill.report.bundle_sections import state_bytes
from reuse_distill.report.drawing.heatmap import attention_picture, colours, png
from reuse_distill.runtime.bundle_format.manifest import (
    FileEntry,
    Geometry,
    GraphProof,
    Manifest,
    ReusedMap,
    State,
    Tensor,
)
from reuse_distill.runtime.tasks import TaskOutput

PROOF = GraphProof(
    layers=4,
    computed_maps=2,
    softmaxes=2,
    reuse_mode="shared",
    reused=(
        ReusedMap(2, 1, "value_2", ("Transpose", "DequantizeLinear")),
        ReusedMap(4, 3, "value_4", ()),
    ),
    checked_file="model.onnx",
)
LAYERS = [
    {"layer": n, "max_abs": 0.01 * n, "mean_cosine": 1 - 1e-4 * n, "min_cosine": 1 - 1e-3 * n} for n in (1, 2, 3, 4)
]


def manifest(**changes: object) -> Manifest:
    base = Manifest(
        kind="offline",
        target="onnx",
        precision="int8",
        status="built",
        artifact="model.onnx",
        features="heads",
        layers=(4,),
        feature_width=32,
        inputs=(Tensor("wave", "float32", (1, "T")),),
        outputs=(Tensor("features", "float32", (1, 1, "F", 32)),),
        states=(),
        geometry=Geometry(),
        files={"model.onnx": FileEntry("ab" * 32, 1_234_567)},
        source={"name": "small", "sha256": "cd" * 32, "parameters": 1_028_096, "student": {"width": 128}},
        tools={"torch": "2.13.0"},
        graph_proof=PROOF,
        parity={
            "bound": {"mean_cosine": 0.99},
            "measured": {"max_abs": 0.4, "mean_cosine": 0.9987, "min_cosine": 0.97},
            "layers": LAYERS,
            "clips": [
                {"samples": 32_000, "max_abs": 0.4, "mean_cosine": 0.9987, "min_cosine": 0.97, "reference_rms": 0.7}
            ],
            "reference": "torch float32",
            "audio": "two recordings",
        },
        quantisation={"method": "static", "in_float": [{"node": "conv_0", "why": "waveform convolution"}]},
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def streaming(**changes: object) -> Manifest:
    states = (
        State("keys_1", "keys_1", "keys_1_out", "float16", ("B", 4, 128, 32), "append", 2, False, "keys"),
        State("position", "position", "position_out", "float32", ("B", 10, 128), "replace", 1, True, "position"),
    )
    return manifest(kind="streaming", states=states, geometry=Geometry(8, 4, 128), **changes)


def test_states_the_figures_of_the_manifest() -> None:
    page = bundle_report(manifest())
    for text in ("1.23 MB", "2 of 4", "0.99870", "two recordings", "waveform convolution", "ab" * 32, "1.03 M"):
        assert text in page
    assert "Transpose ← DequantizeLinear" in page
    assert "graph proven, parity within bound" in page


def test_is_one_file_without_scripts_or_links() -> None:
    page = bundle_report(manifest(), maps={1: np.eye(5), 2: np.eye(5)})
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,)', page) == []
    assert page.count("data:image/png;base64,") == 2


def test_everything_from_outside_is_escaped() -> None:
    evil = '<img src=x onerror="alert(1)">'
    page = bundle_report(
        manifest(
            source={"name": evil, "parameters": 1, evil: evil},
            tools={evil: evil},
            files={"model.onnx": FileEntry("0" * 64, 1), evil: FileEntry("1" * 64, 1)},
            quantisation={"method": evil, "in_float": [{"node": evil, "why": evil}] * 3},
            graph_proof=dataclasses.replace(
                PROOF, checked_file=evil, reused=(ReusedMap(2, 1, evil, (evil,)),), reuse_mode=evil
            ),
            parity={**manifest().parity, "audio": evil, "reference": evil},
        )
    )
    assert "<img" not in page


@pytest.mark.parametrize(
    ("changes", "words", "kind"),
    [
        (
            {"parity": {"bound": {"mean_cosine": 0.999}, "measured": {"max_abs": 0, "mean_cosine": 0.99}}},
            "outside",
            "bad",
        ),
        ({"parity": {"bound": {"max_abs": 1e-4}, "measured": {"max_abs": 2e-4, "mean_cosine": 1.0}}}, "outside", "bad"),
        ({"parity": {}}, "unmeasured", "open"),
        ({"graph_proof": None}, "not proven", "open"),
        ({"status": "deferred"}, "deferred", "open"),
    ],
)
def test_verdict_comes_from_the_figures(changes: dict[str, object], words: str, kind: str) -> None:
    badge = verdict(manifest(**changes))
    assert words in badge.text
    assert badge.kind == kind


def test_unmeasured_parity_is_called_so() -> None:
    assert within_bound(manifest(parity={})) is None
    page = bundle_report(manifest(parity={}, graph_proof=None))
    assert "Not measured." in page
    assert "not proven" in page


def test_deferred_shows_what_was_prepared_and_what_is_left() -> None:
    whole = manifest().parity
    page = bundle_report(
        manifest(
            status="deferred",
            device={"deferred": "there is no GPU here"},
            parity={"bound": {"max_abs": 1e-2}, "prepared": {**whole, "run": "typed.onnx by ONNX Runtime"}},
        )
    )
    assert "Not built yet: there is no GPU here. On the device: rd-export --finish BUNDLE" in page
    assert "artifact unmeasured" in page
    assert "Of typed.onnx by ONNX Runtime" in page
    assert "within bound" not in page


def test_bound_is_drawn_only_among_what_it_bounds() -> None:
    told = {**manifest().parity, "bound": {"max_abs": 0.5}}
    assert ">bound 0.5</text>" in bundle_report(manifest(parity=told, features="hidden"))
    heads = bundle_report(manifest(parity=told))
    assert ">bound 0.5</text>" not in heads
    assert "largest difference 4.00e-01, mean cosine 0.99870 (at most 0.5)" in heads


def test_without_anything_kept_in_float_there_is_no_empty_table() -> None:
    page = bundle_report(manifest(quantisation={"method": "cast", "weights": "float16", "in_float": []}))
    assert "In float, and why" not in page
    assert "float16" in page


def test_what_is_not_there_is_called_none() -> None:
    told = {"method": "static", "gelu_in_parts": None, "calibration": {"speakers": None}, "in_float": []}
    student = {"width": 128, "context": None}
    page = bundle_report(manifest(quantisation=told, source={"name": "small", "student": student}))
    assert "<td>gelu in parts</td><td>none</td>" in page
    assert "<td>context</td><td>none</td>" in page
    assert "None" not in page


def test_artifact_that_shows_no_layers_has_no_empty_plot() -> None:
    told = {key: value for key, value in manifest().parity.items() if key not in ("layers", "clips")}
    assert "After each layer" not in bundle_report(manifest(parity=told))


def test_streaming_shows_states_and_latency() -> None:
    page = bundle_report(streaming())
    expected = 4 * 128 * 32 * 2 + 10 * 128 * 4
    assert state_bytes(streaming()) == expected
    assert "245 ms" in page
    assert "175 ms" in page
    assert "B\u202f×\u202f4\u202f×\u202f128\u202f×\u202f32" in page
    assert "37.9 kB" in page


WINDOW = {"kind": "window", "geometry": Geometry(16, 0, 150, 64), "approximate": True}


def test_window_is_labelled_approximate_and_unmeasured_drift_is_called_so() -> None:
    page = bundle_report(manifest(**WINDOW))
    assert "approximate" in page
    assert "Drift from the features of the whole utterance: unmeasured." in page


def test_window_shows_its_drift() -> None:
    def row(left: int, right: int) -> dict[str, object]:
        return {
            "left_frames": left,
            "right_frames": right,
            "norm": "window",
            "mean_cosine": 1 - 0.1 / (1 + left + right),
            "min_cosine": 0.8,
        }

    drift = {
        "reference": "whole utterance",
        "seconds": 30.0,
        "exported": {**row(150, 64), "mean_cosine": 0.98765},
        "other_norm": {**row(150, 64), "norm": "calibrated", "mean_cosine": 0.91234},
        "left": [row(left, 64) for left in (0, 50, 150)],
        "right": [row(150, right) for right in (0, 64)],
    }
    page = bundle_report(manifest(drift=drift, **WINDOW))
    for text in ("mean frame cosine 0.9877", "calibrated ones would give 0.9123", "on 30 s of audio"):
        assert text in page


def test_drift_plot_marks_every_context() -> None:
    rows = [{"left_frames": n, "mean_cosine": 1 - 0.1 / (1 + n), "min_cosine": 0.8} for n in (0, 25, 150)]
    picture = ET.fromstring(drift_plot(rows, side="left"))
    texts = ["".join(one.itertext()) for one in picture.iter("text")]
    assert {"0", "25", "150"} <= set(texts)
    assert len(list(picture.iter("path"))) == 2
    assert len(list(picture.iter("circle"))) == 6


def test_reuse_graph_draws_one_arc_for_each_reusing_layer() -> None:
    picture = ET.fromstring(reuse_graph(PROOF, exported=(4,)))
    arcs = [one for one in picture.iter() if one.get("marker-end")]
    texts = ["".join(one.itertext()) for one in picture.iter("text")]
    assert len(arcs) == 2
    assert [t for t in texts if t.startswith("reuses the map")] == ["reuses the map of 1", "reuses the map of 3"]
    assert texts.count("value only") == 2
    assert texts.count("query · key · value") == 2
    assert texts.count("features out") == 1


def test_png_holds_the_pixels() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (5, 7, 3), np.uint8)
    data = png(pixels)
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    rows = np.frombuffer(zlib.decompress(data[start : start + length]), np.uint8).reshape(5, 1 + 7 * 3)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert not rows[:, 0].any()
    np.testing.assert_array_equal(rows[:, 1:].reshape(5, 7, 3), pixels)


def test_colours_go_from_white_to_dark_without_a_step_back() -> None:
    shades = colours(np.linspace(0, 1, 101)[None])[0].astype(int).sum(axis=1)
    assert shades[0] == 3 * 255
    assert (np.diff(shades) < 0).all()


def test_picture_of_a_map_is_valid_and_holds_a_png() -> None:
    picture = ET.fromstring(attention_picture(np.eye(6), full=1.0))
    image = next(one for one in picture.iter() if one.tag.endswith("image"))
    assert base64.b64decode(str(image.get("href")).split(",")[1])[:4] == b"\x89PNG"


def test_heads_are_told_with_what_a_user_sees() -> None:
    units = TaskOutput("units", "units", 100)
    words = TaskOutput("words", "classify", 2, ("yes", "<b>no</b>"))
    outputs = (Tensor("units", "int32", (1, "F", 1)), Tensor("words", "float32", (1, "F", 2)))
    measured = {"agreement": 0.9761, "seen": {"edits_without_repeats": 12, "units_of_source": 900}}
    stated = {"units": {"bound": {"agreement": 0.9}, "measured": measured}, "words": {"bound": {"max_abs": 0.01}}}
    bound = {"bound": {"mean_cosine": 0.9}, "measured": {"max_abs": 1.0, "mean_cosine": 0.97, "min_cosine": 0.97}}
    page = bundle_report(
        manifest(
            features="none", layers=(), feature_width=0, heads=(units, words), outputs=outputs,
            parity={**bound, "heads": stated, "clips": [], "layers": [], "slices": []},
        )
    )  # fmt: skip
    assert "0.9761" in page and "12 edits without repeats" in page and "one of 100 units" in page
    assert "<b>no</b>" not in page and "unmeasured" in page and "units, words, every 20 ms" in page
    assert ">Heads<" in bundle_report(manifest(heads=(units,), outputs=(*manifest().outputs, outputs[0])))
    assert ">Heads<" not in bundle_report(manifest())
