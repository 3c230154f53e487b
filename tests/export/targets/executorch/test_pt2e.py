"""What PT2E quantises and what stays in float, before anything is lowered."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reuse_distill.export.capture.capture import capture
from reuse_distill.export.quantise.calibration import CalibrationSet, feeds
from reuse_distill.export.quantise.quantisation_recipe import Recipe, block_names, of_precision
from reuse_distill.export.spec import ExportSpec, Offline
from reuse_distill.export.targets import Job, check_possible
from reuse_distill.export.targets.executorch.executorch_target import ExecutorchTarget
from reuse_distill.export.targets.executorch.pte_convert import (
    ALWAYS_IN_FLOAT,
    ASKED,
    block_of,
    exported,
    kept_in_float,
    quantised,
    weighted,
)
from reuse_distill.export.targets.executorch.pte_program import read_program
from reuse_distill.export.targets.executorch.row_modules import friendly
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, preset


def test_every_weighted_module_is_in_a_block_of_the_recipes(
    make_student: Callable[..., Student], make_spec: Any
) -> None:
    student = make_student("tiny", lookahead_frames=7)
    module = friendly(capture(student, make_spec("offline")))
    found = set(weighted(module).values())
    convolutions = {f"front-end.{k}" for k in range(len(student.config.conv_layers))}
    assert found == (set(block_names(student.config)) | convolutions) - {"front-end"}
    with pytest.raises(ValueError, match="in no block"):
        block_of("decoder.0")


def test_the_recipe_names_what_stays_in_float() -> None:
    blocks = ["front-end.0", "front-end.1", "position", "layer.1.attention", "layer.1.ffn", "heads"]
    recipe = Recipe("int8", "int8-static", in_float=("layer.1.ffn", "front-end"))
    kept = kept_in_float(blocks, recipe.keeps_in_float)
    assert set(kept) == {"front-end.0", "front-end.1", "position", "layer.1.ffn"}
    assert kept["layer.1.ffn"] == ASKED
    assert kept["position"] == ALWAYS_IN_FLOAT["position"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
def test_blocks_that_a_recipe_keeps_in_float_are(
    precision: str,
    executorch: Any,
    make_student: Callable[..., Student],
    make_spec: Callable[..., ExportSpec],
    clips: list[np.ndarray],
    tmp_path: Path,
) -> None:
    """Of the whole path: they pass the check of what is possible, and the program has their weights in float."""
    given = dataclasses.replace(of_precision(precision), in_float=("front-end", "layer.1.ffn", "heads"))
    spec = make_spec("streaming", precision, batch=1, given=given)
    target = ExecutorchTarget()
    check_possible(target, spec)
    calibration = CalibrationSet(tuple(clips), 2, 2, "0" * 64, ())
    student = make_student("tiny-stream")
    (candidate,) = target.candidates(spec, student.config)
    captured = capture(student, spec)
    made = target.make(Job(captured, spec, calibration, tmp_path, tmp_path, lambda what: None), candidate)
    told = made.quantisation
    kept = {row["node"] for row in told["in_float"]}
    assert {"layer.1.ffn", "heads"} <= kept
    assert {"layer.1.attention", "layer.2.ffn"} & kept == set()
    kinds = Counter(constant.kind for constant in read_program(tmp_path / made.artifact).constants.values())
    assert kinds["qcint8"] == 4 + 2 + 2, "q, k, v, out of layer 1; v and out of layer 2, which reuses; its two products"
    assert tuple(told["recipe"]["in_float"]) == given.in_float


def test_a_recipe_with_blocks_in_float_is_the_only_candidate(make_spec: Any) -> None:
    given = dataclasses.replace(of_precision("int8"), in_float=("heads",), symmetric_activations=False)
    spec = make_spec("streaming", "int8", given=given)
    check_possible(ExecutorchTarget(), spec)
    found = ExecutorchTarget().candidates(spec, preset("tiny-stream"))
    assert found == ("recipe",), "no front end but the recipe's own"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"method": "entropy"}, "method"),
        ({"per_channel": False}, "per_channel"),
        ({"symmetric_activations": True}, "symmetric_activations"),
        ({"reduce_range": True}, "reduce_range"),
    ],
)
def test_what_xnnpack_cannot_is_refused(changes: dict[str, Any], field: str, make_spec: Any) -> None:
    for precision in ("int8", "int8-dynamic"):
        given = dataclasses.replace(of_precision(precision), **changes)
        with pytest.raises(RdError, match=f"recipe: executorch cannot honour {field}"):
            check_possible(ExecutorchTarget(), make_spec("streaming", precision, given=given))


def test_only_the_modules_asked_for_are_in_int8(
    executorch: Any,
    make_student: Callable[..., Student],
    make_spec: Callable[..., ExportSpec],
    clips: list[np.ndarray],
) -> None:
    spec = make_spec("streaming", "int8", batch=1)
    captured = capture(make_student("tiny-stream"), spec)
    module = friendly(captured)
    program = exported(module, captured, Offline(1.0))
    modules = frozenset({"layers.0.fc1", "layers.1.self_attn.v_proj", "front_end.convs.3"})
    rows = list(feeds(captured, spec, CalibrationSet(tuple(clips), 2, 2, "", ())))
    found = quantised(program, captured, rows, modules=modules, dynamic=False)
    weights = [n for n in found.graph.nodes if "dequantize_per_channel" in str(n.target)]
    assert len(weights) == len(modules)
    arguments = [torch.from_numpy(rows[-1][name]) for name in captured.input_names]
    with torch.no_grad():
        got, wanted = found(*arguments)[0][0].numpy(), module(*arguments)[0][0].numpy()
    result = difference(got, wanted)
    assert 0.99 < result.mean_cosine < 1 - 1e-7  # close, and not the same: something was rounded
