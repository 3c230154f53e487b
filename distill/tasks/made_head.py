"""The frozen student under a head, and from what was fitted on it to a head that can be saved."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from reuse_distill.distill.evaluation.features import CPU, Features, of_student
from reuse_distill.distill.evaluation.linear_probes import ALPHABET, LinearModel
from reuse_distill.runtime.bundle import file_sha256
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks import TaskOutput
from reuse_distill.student import Student, load_checkpoint
from reuse_distill.student.checkpoint import WEIGHTS
from reuse_distill.student.tasks import HeadConfig, TaskHead, folded_linear
from torch import Tensor


@dataclass(frozen=True)
class FrozenStudent:
    """Features of some layers; a streaming student computes them in the chunks that it was trained for."""

    features: Features
    name: str
    sha256: str
    takes: str  # hidden | heads
    known: tuple[int, ...]  # layers that there are, in the order of the features
    layers: tuple[int, ...]  # layers that the head takes
    width: int

    def __call__(self, samples: NDArray[np.float32]) -> Tensor:
        """(T,) -> (N, F, W) float32."""
        every = self.features(samples)
        return every[[self.known.index(layer) for layer in self.layers]]

    def head_config(self, output: TaskOutput, **more: object) -> HeadConfig:
        """The configuration of a head on these features."""
        bound = {"student_sha256": self.sha256, "student_name": self.name, "takes": self.takes}
        return HeadConfig(output, layers=self.layers, width=self.width, **bound, **more)  # type: ignore[arg-type]


def open_student(
    checkpoint: Path, *, layers: str = "last", takes: str = "hidden", device: torch.device = CPU
) -> FrozenStudent:
    """The student of a checkpoint folder; ``layers``: last, all, or numbers from 1 such as 3,6.

    Raises RdError for another folder, for layers that there are not, and for projection heads that there are not.
    """
    student = load_checkpoint(checkpoint)
    config = student.config
    if takes == "heads" and config.head_width is None:
        raise RdError(f"{checkpoint}: this student has no projection heads", hint="use --features hidden")
    known = config.targets if takes == "heads" else tuple(range(1, config.layers + 1))
    name = checkpoint.resolve().parent.name if checkpoint.name == "student" else checkpoint.name
    width = config.width if takes == "hidden" else int(config.head_width or 0)
    features = of_student(name, student, heads=takes == "heads", device=device)
    sha256 = file_sha256(checkpoint / WEIGHTS)
    return FrozenStudent(features, name, sha256, takes, known, _layers(layers, known), width)


def _layers(text: str, known: tuple[int, ...]) -> tuple[int, ...]:
    if text in ("last", "all"):
        return known[-1:] if text == "last" else known
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise RdError(f"--layers {text!r} is not last, all or numbers such as 3,6") from None
    missing = [number for number in numbers if number not in known]
    if missing:
        raise RdError(f"--layers: there is no layer {missing[0]}", hint=f"there are {', '.join(map(str, known))}")
    return numbers


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
