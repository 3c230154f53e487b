"""From what was fitted on a frozen student to a head that can be saved, with where it comes from."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from typing import Any

import torch
from reuse_distill.distill.evaluation.ctc import ALPHABET
from reuse_distill.distill.evaluation.linear import LinearModel
from reuse_distill.distill.tasks.frozen_student import FrozenStudent
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks import TaskOutput
from reuse_distill.student import Student
from reuse_distill.student.tasks import TaskHead
from reuse_distill.student.tasks.task_head import folded_linear
from torch import Tensor


def letters_output(name: str) -> TaskOutput:
    """The contract of a head that spells: blank first, words end at a space."""
    return TaskOutput(name, "ctc", len(ALPHABET) + 1, ("<blank>", *ALPHABET), blank=0, delimiter=" ")


def provenance_of(made_by: str, *, seed: int, licence: str) -> dict[str, Any]:
    """What ``head.json`` says about how the head was made."""
    return {
        "made_by": made_by,
        "seed": seed,
        "licence_of_data": licence or "not stated",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def linear_head(
    student: FrozenStudent,
    output: TaskOutput,
    model: LinearModel,
    metrics: dict[str, Any],
    provenance: dict[str, Any],
) -> TaskHead:
    """The head of a probe: its normalisation and the weights of its layers are multiplied into one linear layer."""
    weight, bias = folded_linear(
        model.weight.T, model.bias, mix=torch.softmax(model.mix, 0), mean=model.mean, scale=model.scale
    )
    return head_of(student, output, {"outer.weight": weight, "outer.bias": bias}, metrics, provenance)


def head_of(
    student: FrozenStudent,
    output: TaskOutput,
    weights: Mapping[str, Tensor],
    metrics: dict[str, Any],
    provenance: dict[str, Any],
    **more: Any,
) -> TaskHead:
    """A head with ``weights``, bound to the student. Raises RuntimeError for weights of other shapes."""
    head = TaskHead(student.head_config(output, provenance=provenance, metrics=metrics, **more))
    head.load_state_dict({name: tensor.detach().float() for name, tensor in weights.items()})
    return head.eval()


def fold_projection(head: TaskHead, student: Student) -> TaskHead:
    """The same head on hidden features: the student's projections, which are linear, are multiplied into its weights.

    What it computes is the same but for rounding; it is smaller where layers are narrower than their projections, and
    the artifact needs no projection. Raises RdError for a head that stands on hidden features already, and for
    projections that are more than one linear layer.
    """
    config, projections = head.config, student.proj_head
    if config.takes != "heads":
        raise RdError(f"head {config.output.name!r} takes hidden features", hint="train it with --features heads")
    if projections is None or student.config.time_reduction != 1:
        raise RdError("the projection heads of this student are not one linear layer each: they cannot be folded")
    state = head.state_dict()
    first = "outer" if head.inner is None else "inner"
    blocks = state[f"{first}.weight"].double().split(config.width, dim=1)  # (K, W) of every layer
    linear = [projections[number - 1].lin_proj for number in config.layers]
    folded = [block @ one.weight.double() for block, one in zip(blocks, linear, strict=True)]
    shift = [block @ one.bias.double() for block, one in zip(blocks, linear, strict=True)]
    state[f"{first}.weight"] = torch.cat(folded, dim=1).float()
    state[f"{first}.bias"] = (state[f"{first}.bias"].double() + sum(shift)).float()
    provenance = {**config.provenance, "folded": "trained on projection heads, which are multiplied into the weights"}
    narrow = TaskHead(dataclasses.replace(config, takes="hidden", width=student.config.width, provenance=provenance))
    narrow.load_state_dict(state)
    return narrow.eval()
