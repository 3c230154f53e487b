"""What a target is given: modules with named tensors whose descriptions are true."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from reuse_distill.export.capture.capture import capture
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import ChunkContext


@pytest.mark.parametrize(("name", "mode"), [("shared", "offline"), ("shared", "window"), ("stream", "streaming")])
@pytest.mark.parametrize("layers", [(4,), (1, 3), (1, 2, 3, 4)])
def test_shapes_are_those_that_the_module_gives(name: str, mode: str, layers, workshop, spec_of) -> None:
    captured = capture(workshop.student(name), spec_of(mode, layers=layers))
    with torch.no_grad():
        outputs = captured.module(*captured.example)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == len(captured.output_names)
    assert len(captured.example) == len(captured.input_names)
    assert len(set(captured.input_names + captured.output_names)) == len(captured.input_names + captured.output_names)
    sizes = {"B": 2, "T": 32_000, "F": 99}
    for port, value in zip(
        (*captured.inputs, *captured.outputs), (*captured.example[: len(captured.inputs)], outputs[0]), strict=False
    ):
        assert tuple(sizes.get(n, n) for n in port.shape) == tuple(value.shape), port.name
    for state, value, new in zip(captured.states, captured.example[2:], outputs[1:], strict=True):
        assert tuple(sizes.get(n, n) for n in state.shape) == tuple(value.shape), state.name
        rows = list(value.shape)
        rows[state.axis] = 4 if state.update == "append" else rows[state.axis]
        assert list(new.shape) == rows, state.name


@pytest.mark.parametrize(
    ("left", "lookahead", "roles"),
    [
        (12, 4, {"position", "position_validity", "validity", "keys", "values"}),
        (0, 4, {"position", "position_validity"}),
        (12, 0, {"position", "validity", "keys", "values"}),
        (0, 0, {"position"}),
    ],
)
def test_states_exist_only_where_there_is_something_to_keep(
    left, lookahead, roles, configs, randomised, spec_of
) -> None:
    student = randomised(dataclasses.replace(configs["stream"], lookahead_frames=lookahead))
    captured = capture(student, spec_of("streaming", context=ChunkContext(4, left)))
    assert {state.role for state in captured.states} == roles
    assert captured.geometry.lookahead_frames == lookahead
    assert captured.geometry.left_frames == left


def test_only_computing_layers_keep_keys(workshop, spec_of) -> None:
    states = capture(workshop.student("stream"), spec_of("streaming")).states
    assert [s.name for s in states if s.role == "keys"] == ["keys_01", "keys_03"]
    assert [s.name for s in states if s.role == "values"] == [
        "values_01",
        "values_02",
        "values_03",
        "values_04",
    ]
    assert all(s.ordered == (s.update == "replace") for s in states)


def test_a_fixed_batch_has_no_symbols(workshop, spec_of) -> None:
    captured = capture(workshop.student("stream"), spec_of("streaming", batch=3))
    assert captured.dynamic_axes == {}
    assert {port.shape[0] for port in (*captured.inputs, *captured.outputs, *captured.states)} == {3}


def test_a_group_norm_student_cannot_be_a_step(workshop, spec_of) -> None:
    with pytest.raises(RdError, match="no step can be exact"):
        capture(workshop.student("shared"), spec_of("streaming"))


def test_features_are_chosen_by_layer_and_kind(workshop, spec_of, noise) -> None:
    student, wave = workshop.student("shared"), torch.from_numpy(noise(6000))[None]
    with torch.no_grad():
        whole = student(wave)
        found = capture(student, spec_of("offline", layers=(3, 1), features="hidden")).module(wave)
    wanted = np.stack([whole.layers[2][0].numpy(), whole.layers[0][0].numpy()])
    np.testing.assert_allclose(found[0].numpy(), wanted, atol=2e-5)
