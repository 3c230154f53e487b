"""The frozen student under a head, and what was fitted on it as a head folder.

``rd-distill evaluate --keep`` writes what its probes learned the same way.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from reuse_distill.distill.evaluation.evaluate import Outcome, Probe
from reuse_distill.distill.evaluation.features import CPU, Features, of_student
from reuse_distill.distill.evaluation.linear_probes import ALPHABET, LinearModel
from reuse_distill.runtime.bundle_format.bundle import file_sha256
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks import TaskOutput
from reuse_distill.student import Student, load_checkpoint
from reuse_distill.student.checkpoints.checkpoint import WEIGHTS
from reuse_distill.student.tasks import HeadConfig, TaskHead, folded_linear, save_head
from torch import Tensor

if TYPE_CHECKING:
    from reuse_distill.student.tasks import TaskHead


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


def card_of(head: Any) -> str:
    """A README.md for the head's folder."""
    config = head.config
    weights = sum(p.numel() for p in head.parameters())
    labels = f"\nLabels: {', '.join(config.output.labels)}\n" if config.output.kind in ("spot", "classify") else ""
    return (
        f"# Head `{config.output.name}` ({config.output.kind})\n\n"
        f"For the student `{config.student_name}` with weights of sha256 `{config.student_sha256}` and no other.\n"
        f"{weights} weights over layers {', '.join(map(str, config.layers))} ({config.takes}).\n{labels}\n"
        f"Licence of the data: {config.provenance.get('licence_of_data', 'not stated')}.\n\n"
        f"## How it was made\n\n```json\n{json.dumps(config.provenance, indent=1)}\n```\n\n"
        f"## What was measured\n\n```json\n{json.dumps(config.metrics, indent=1)}\n```\n"
    )


def keep_in(
    folder: Path, student: FrozenStudent, *, seed: int, report: Callable[[str], None]
) -> Callable[[Probe, Outcome, dict[str, Any]], None]:
    """What ``evaluate`` calls after each probe: it writes ``folder/NAME`` with the head and what was measured of it.

    Raises RdError where there is a head of that name already, before anything is written.
    """

    def keep(probe: Probe, outcome: Outcome, row: dict[str, Any]) -> None:
        assert outcome.model is not None  # noqa: S101  (every probe fits one)
        name = name_of(probe)
        letters = probe.kind == "ctc"
        output = letters_output(name) if letters else TaskOutput(name, "classify", len(outcome.labels), outcome.labels)
        own = {key: value for key, value in row.items() if key != "results"}
        metrics = {**own, **{key: value for key, value in row["results"][0].items() if key != "source"}}
        provenance = provenance_of("rd-distill evaluate --keep", seed=seed, licence="")
        head = linear_head(student, output, outcome.model, metrics, provenance)
        report(f"kept: {save_head(folder / name, head, card=card_of(head))}")

    return keep


def name_of(probe: Probe) -> str:
    """The head of a probe: its kind and the data's name, in lower case."""
    data = probe.data.parent.name if probe.data.suffix else probe.data.name
    return re.sub(r"[^a-z0-9]+", "_", f"{probe.kind}_{data}".lower()).strip("_")[:40]


def check_free(folder: Path, probes: list[Probe]) -> None:
    """Raises RdError where two probes would be kept under one name, or one is there already."""
    names = [name_of(probe) for probe in probes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RdError(f"--keep: two probes would be kept as {twice}", hint="keep them in two runs")
    there = next((name for name in names if (folder / name).exists()), None)
    if there is not None:
        raise RdError(f"--keep: {folder / there} is there already", hint="name another folder, or remove it")
