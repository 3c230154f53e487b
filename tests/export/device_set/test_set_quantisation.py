"""--preset and --recipe of a set: they reach the bundles of their precision; a target that cannot take one says so."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from pathlib import Path

import pytest
from reuse_distill.export.device_set.set_command import make_set
from reuse_distill.export.device_set.set_plan import Planned, RequestedQuantisation, requested_quantisation
from reuse_distill.export.export_command import export_from
from reuse_distill.export.export_options import set_parser
from reuse_distill.export.quantise.quantisation_recipe import Recipe
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.errors import RdError

SET = [Planned("onnx", "fp32", "streaming"), Planned("onnx", "int8", "streaming")]


def run(words: list[str | Path], export) -> tuple[int, dict, str]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        status = make_set(set_parser().parse_args([str(word) for word in words]), export=export)
    output = Path(words[words.index("--output") + 1])
    return status, json.loads((output / "comparison.json").read_text()), (output / "index.html").read_text()


def only(*precisions: str):
    """Exports of these precisions; the others stand for what is not looked at here."""

    def export(args: argparse.Namespace) -> Manifest:
        if args.precision not in precisions:
            raise RdError("not made in this test")
        return export_from(args)

    return export


def command(workshop, device: str, output: Path, *words: str | Path) -> list[str | Path]:
    made = [workshop.checkpoint("stream"), "--device", device, "--layers", "all", "--chunk", "4"]
    return [*made, "--left", "12", "--calibration", workshop.speech, *words, "--output", output]


def test_a_preset_reaches_the_file_in_int8_and_the_page(workshop, tmp_path: Path) -> None:
    words = ("--targets", "onnx", "--preset", "arm64")
    _, found, page = run(command(workshop, "raspberry-pi-5", tmp_path / "set", *words), only("int8"))
    rows = {one["precision"]: one for one in found["bundles"]}
    assert rows["int8"]["status"] == "built", rows["int8"]["reason"]
    assert rows["int8"]["recipe"]["preset"] == "arm64"
    bundle = read_bundle(tmp_path / "set" / "onnx-streaming-int8").manifest
    assert (bundle.precision, bundle.quantisation["recipe"]["preset"]) == ("int8", "arm64")
    assert rows["fp32"]["reason"] == "not made in this test", "asked for without a preset"
    assert "preset arm64" in page


def test_a_recipe_reaches_the_bundle_of_its_precision(workshop, tmp_path: Path) -> None:
    recipe = tmp_path / "r.json"
    recipe.write_text('{"weights": "int8", "activations": "int8-static", "in_float": ["front-end", "heads"]}')

    def export(args: argparse.Namespace) -> Manifest:
        raise RdError(f"asked for {args.precision} and {args.recipe}")

    words = ("--targets", "onnx", "--recipe", recipe)
    _, found, _ = run(command(workshop, "raspberry-pi-5", tmp_path / "set", *words), export)
    said = {one["precision"]: one["reason"] for one in found["bundles"]}
    assert said["int8"] == f"asked for None and {recipe}"
    assert said["fp32"] == "asked for fp32 and None"


def test_a_target_that_cannot_take_the_preset_is_refused_by_name(workshop, tmp_path: Path) -> None:
    words = ("--targets", "onnx,ort", "--preset", "tensorrt")
    status, found, _ = run(command(workshop, "raspberry-pi-5", tmp_path / "set", *words), only("int8"))
    assert status == 2
    said = {one["name"]: one["reason"] for one in found["bundles"] if one["precision"] == "int8"}
    assert 'onnx cannot honour preset "tensorrt"; possible there' in said["onnx-streaming-int8"]
    assert 'ort cannot honour preset "tensorrt"' in said["ort-streaming-int8"]


@pytest.mark.parametrize(
    ("preset", "recipe", "message"),
    [
        ("arm46", None, "--preset arm46 is unknown"),
        ("arm64", Recipe("int8", "int8-static"), "--preset and --recipe both say"),
        (None, Recipe("int4"), r"--recipe \S+ is of no bundle of this set: it has fp32, int8"),
        (None, Recipe(), r"--recipe \S+ is of no bundle of this set"),
    ],
)
def test_what_no_bundle_can_be_made_by_is_refused_before_any_is_made(preset, recipe, message, tmp_path: Path) -> None:
    file = None
    if recipe is not None:
        file = tmp_path / "r.json"
        file.write_text(json.dumps({"weights": recipe.weights, "activations": recipe.activations}))
    with pytest.raises(RdError, match=message):
        requested_quantisation(preset, file, SET)


def test_only_products_in_int8_are_of_a_preset() -> None:
    asked = RequestedQuantisation(preset="arm64")
    assert asked.words(SET[0]) == ["--precision", "fp32"]
    assert asked.words(SET[1]) == ["--precision", "int8", "--preset", "arm64"]
    assert not asked.concerns(Planned("onnx", "int8-weights", "offline"))
    with pytest.raises(RdError, match="--preset arm64 is of no bundle of this set: it has fp32"):
        requested_quantisation("arm64", None, SET[:1])


def test_floats_that_the_set_has_not_are_refused() -> None:
    asked = RequestedQuantisation(file=Path("r.json"), recipe=Recipe("int8", "int8-static", "fp32"))
    assert asked.words(SET[1]) == ["--recipe", "r.json"]
    with pytest.raises(RdError, match=r"--recipe r\.json is int8-fp32 for tensorrt, the set has int8"):
        asked.words(Planned("tensorrt", "int8", "streaming"))
