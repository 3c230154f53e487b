"""From what was fitted on a frozen student to a head that can be saved, with where it comes from."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch
from reuse_distill.distill.evaluation.ctc import ALPHABET
from reuse_distill.distill.evaluation.linear import LinearModel
from reuse_distill.distill.tasks.frozen_student import FrozenStudent
from reuse_distill.runtime.tasks import TaskOutput
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
