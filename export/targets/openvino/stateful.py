"""Steps whose states stay inside the model (``--states engine``): ReadValue and Assign, not inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from reuse_distill.export.capture.capture import Capture, CapturedStep, step_states
from reuse_distill.export.spec import ExportSpec, Streaming
from reuse_distill.runtime.bundle_format.manifest import State
from reuse_distill.runtime.engines.openvino.held_states import variable_id
from reuse_distill.runtime.errors import RdError


def engine_keeps(spec: ExportSpec) -> bool:
    """Whether the export is to be a stateful model."""
    return isinstance(spec.mode, Streaming) and spec.mode.states == "engine"


def static_steps(spec: ExportSpec) -> ExportSpec:
    """The spec with the number of streams fixed, as a variable has one shape; RdError for steps of several sizes."""
    mode = spec.mode
    assert isinstance(mode, Streaming)  # noqa: S101  (engine_keeps has seen to it)
    if mode.chunks:
        raise RdError(
            "--chunks is not possible with --states engine: the model's states have one fixed step",
            hint="use --states tensors, or one bundle per size: a stream's snapshot moves between them",
        )
    return dataclasses.replace(spec, mode=dataclasses.replace(mode, batch=mode.batch or 1))


def whole_steps(captured: Capture, spec: ExportSpec) -> Capture:
    """The capture with steps that return their whole next states, as an Assign takes them."""
    step, mode = captured.module, spec.mode
    assert isinstance(step, CapturedStep) and isinstance(mode, Streaming) and mode.batch is not None  # noqa: S101
    whole = CapturedStep(step.student, step.layers, step.features, step.template, whole=True)
    states = step_states(step.student.config, mode.context, mode.batch, whole=True)
    return dataclasses.replace(captured, module=whole, states=states)


def hold_states(model: Any, states: Sequence[State]) -> None:
    """Turn each pair of input and output of ``states`` into a variable of ``model``, which is zero at first.

    Raises RdError with OpenVINO's own message, and where a state is still an input afterwards.
    """
    from openvino._offline_transformations import apply_make_stateful_transformation

    try:
        apply_make_stateful_transformation(model, {state.input: state.output for state in states})
    except RuntimeError as error:
        raise RdError(
            f"OpenVINO could not make the model stateful: {error}",
            hint="use --states tensors; constraints.txt has the versions that this was verified with",
        ) from error
    missing = {variable_id(state) for state in states} - {v.get_info().variable_id for v in model.get_variables()}
    if missing:
        raise RdError(
            f"OpenVINO made no variable of the states {', '.join(sorted(missing))}", hint="use --states tensors"
        )
