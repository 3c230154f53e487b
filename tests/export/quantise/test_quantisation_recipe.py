"""The recipe: one set of names for all targets, strict JSON, blocks of the student that there are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from reuse_distill.export.quantise.quantisation_recipe import (
    SHORT,
    CalibratedWith,
    Recipe,
    block_names,
    check_blocks,
    of_precision,
    read_recipe,
    recipe_json,
    require,
)
from reuse_distill.runtime.errors import RdError


def test_json_there_and_back(tmp_path: Path) -> None:
    calibration = CalibratedWith("ab", 3, 21.5, "unknown")
    recipe = Recipe(
        "int8",
        "int8-static",
        None,
        "percentile",
        99.99,
        False,
        True,
        True,
        ("layer.2.ffn", "heads"),
        "arm64",
        calibration,
    )
    assert all(getattr(recipe, f.name) != f.default for f in dataclasses.fields(Recipe) if f.name != "floats")
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe_json(recipe)))
    assert read_recipe(file) == recipe


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('{"weigths": "int8"}', "unknown key 'weigths'", "'weights'"),
        ('{"weights": "int7"}', "weights 'int7' is unknown", "'int8'"),
        ('{"method": "kl"}', "method 'kl' is unknown", "entropy"),
        ('{"weights": "int4", "activations": "int8-static"}', "products need int8 weights", "int8"),
        ('{"percentile": 5}', "percentile 5 is outside 50..100", "99.9"),
        ('{"per_channel": 1}', "per_channel: expected bool, found int", None),
        ('{"in_float": ["heads"]}', "nothing is less than a float", None),
        ('{"weights": "int8", "in_float": ["heads", "heads"]}', "names a block twice", None),
        ("[1]", "expected an object", None),
        ("{", "is not JSON", None),
    ],
)
def test_anything_else_is_refused(text: str, message: str, hint: str | None, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(RdError, match=message) as caught:
        read_recipe(tmp_path / "r.json")
    assert hint is None or hint in str(caught.value.hint)


def test_precision_names_are_recipes_and_back() -> None:
    assert {name: of_precision(name).precision("tensorrt") for name in SHORT} == {name: name for name in SHORT}
    assert Recipe("int8", "int8-static", "fp32").precision("onnx") == "int8", "floats are fp32 there anyway"
    assert Recipe().precision("onnx") == "fp32" and Recipe().precision("coreml") == "fp16"
    with pytest.raises(RdError, match="no target has that"):
        Recipe("int8", "int8-dynamic", "bf16").precision("onnx")
    with pytest.raises(RdError, match="--precision int88 is unknown"):
        of_precision("int88")


def test_blocks_are_those_of_the_student(configs) -> None:
    config = configs["shared"]
    assert block_names(config)[-4:] == ("layer.3.ffn", "layer.4.attention", "layer.4.ffn", "heads")
    assert "heads" not in block_names(dataclasses.replace(config, head_width=None))
    check_blocks(("front-end", "front-end.8", "position", "layer.4.ffn"), config)
    for wrong, hint in (("layer.5.ffn", "layers 1 to 4"), ("frontend", "'front-end'"), ("front-end.0", "front-end")):
        with pytest.raises(RdError, match=f"no block '{wrong}'") as caught:
            check_blocks([wrong], config)
        assert hint in str(caught.value.hint)


def test_a_part_follows_its_whole() -> None:
    recipe = Recipe("int8", "int8-static", in_float=("front-end", "layer.1.ffn"))
    assert recipe.keeps_in_float("front-end.3") and recipe.keeps_in_float("layer.1.ffn")
    assert not recipe.keeps_in_float("layer.1.attention") and not recipe.keeps_in_float("heads")
    assert recipe.also_in_float(["heads", "front-end"]).in_float == ("front-end", "layer.1.ffn", "heads")


def test_what_a_target_cannot_do_is_refused_by_name() -> None:
    require(Recipe(), "coreml", {"method": ("minmax",), "in_float": ((),)})
    with pytest.raises(RdError, match='coreml cannot honour method "entropy"') as caught:
        require(Recipe(method="entropy"), "coreml", {"method": ("minmax",)})
    assert 'possible there: "minmax"' in str(caught.value.hint)


def test_the_command_line_takes_a_recipe(workshop, run_export, tmp_path: Path) -> None:
    file, output = tmp_path / "r.json", tmp_path / "bundle"
    words = [workshop.checkpoint("shared"), "--recipe", file, "--calibration", workshop.speech, "--output", output]
    for recipe, extra, message in (
        ({"weights": "int8", "in_float": ["layer.9.ffn"]}, [], "the student has no block 'layer.9.ffn'"),
        ({"weights": "int8"}, ["--precision", "int8"], "--precision and --recipe both say"),
        ({"weights": "int8"}, ["--front-end", "float"], "--front-end is for --precision"),
        ({"weights": "palette-4"}, [], "--precision palette-4 is not possible for onnx"),
        (
            {"weights": "int8", "activations": "int8-static", "method": "entropy"},
            ["--target", "coreml"],
            'recipe: coreml cannot honour method "entropy"',
        ),
    ):
        file.write_text(json.dumps(recipe))
        run = run_export(*words, *extra)
        assert (run.status, message in run.err) == (2, True), run.err
        assert not output.exists()
