"""One file per target, each behind the same small interface.

``make`` converts and quantises, ``read_graph`` gives the finished artifact to the graph proof, ``run`` and ``layers``
give its numbers to the parity check. The pipeline does the rest, alike for all.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.export_options import REGISTRY
from reuse_distill.export.proof import ProofGraph
from reuse_distill.export.quantise.calibration import CalibrationSet
from reuse_distill.export.quantise.quantisation_recipe import PLAIN, Recipe, block_names, of_precision, require
from reuse_distill.export.spec import CANDIDATES, ExportSpec
from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.runtime.manifest import State
from reuse_distill.student import StudentConfig


@dataclass(frozen=True)
class Job:
    """One artifact to make."""

    captured: Capture
    spec: ExportSpec
    calibration: CalibrationSet | None
    folder: Path  # the bundle being written
    scratch: Path  # for files that do not go into it
    say: Callable[[str], None]

    @property
    def depth(self) -> int:
        """Layers of the student that the artifact holds."""
        module: Any = self.captured.module
        return int(module.student.config.layers)


@dataclass(frozen=True)
class Made:
    """What a target made of a job; ``status`` is ``deferred`` where the device itself has to finish it."""

    artifact: str  # file or folder name inside the bundle
    states: tuple[State, ...]
    quantisation: dict[str, Any] = field(default_factory=dict)
    status: str = "built"
    device: dict[str, Any] | None = None
    packages: tuple[str, ...] = ()  # whose versions the manifest notes
    prepared: str = ""  # deferred: what ``run`` runs instead of the artifact that there is not yet


class Target(Protocol):
    """How one kind of artifact is made, proven and run for comparison."""

    precisions: tuple[str, ...]
    modes: tuple[str, ...]

    def candidates(self, spec: ExportSpec, config: StudentConfig) -> tuple[str, ...]:
        """Ways to make the artifact of a student, cheapest on the device first; the first within the bound is taken."""

    def make(self, job: Job, candidate: str) -> Made:
        """Write the artifact into ``job.folder``. Raises RdError with the vendor tool's own message."""

    def read_graph(self, artifact: Path) -> ProofGraph:
        """The finished artifact for the graph proof."""

    def run(self, bundle: Path, job: Job, wave: np.ndarray) -> np.ndarray:
        """Features (N, F, W) of the utterance ``wave`` (T,), as the device would compute them."""

    def layers(self, bundle: Path, job: Job) -> Callable[[np.ndarray], list[np.ndarray]] | None:
        """A function from ``wave`` to hidden features (F, E) after every layer; None where they cannot be reached."""


def find_target(name: str) -> Target:
    """The target called ``name``; raises RdError with the nearest name."""
    if name not in REGISTRY:
        raise RdError(f"there is no target {name!r}", hint=nearest(name, list(REGISTRY)))
    module, attribute = REGISTRY[name].split(":")
    target: Target = getattr(importlib.import_module(module), attribute)()
    return target


def front_end_candidates(spec: ExportSpec, config: StudentConfig) -> tuple[str, ...]:
    """Static int8: the front end in int8 too, or in float where one scale for loud and quiet frames loses too much.

    The last resort is the projection that takes the front end's result in float as well, where the student has one:
    without a norm between them (DistilHuBERT) it sees the same loud and quiet frames. A recipe that was given, and any
    other precision, is the only candidate.
    """
    if not of_precision(spec.precision).calibrates:
        return (spec.precision,)
    if spec.given is not None:
        return ("recipe",)
    if spec.front_end != "auto":
        return (spec.front_end,)
    known = block_names(config)
    return tuple(name for name, in_float in CANDIDATES.items() if set(in_float) <= set(known))


def adapted(target: Target, spec: ExportSpec) -> ExportSpec:
    """The spec as ``target`` needs it captured: one that has ``adapt`` fixes what its device cannot vary."""
    if spec.states == "whole":
        spec = dataclasses.replace(spec, state_update="replace")
    adapt: Callable[[ExportSpec], ExportSpec] | None = getattr(target, "adapt", None)
    return spec if adapt is None else adapt(spec)


def check_possible(target: Target, spec: ExportSpec) -> None:
    """Raises RdError where ``target`` has no such precision or mode, or cannot honour a field of the recipe.

    A target's ``honours(recipe)`` tells what it can do of the fields in ``PLAIN``: their possible values, or None
    where any will do. One without it takes recipes with the plain values only.
    """
    for option, value, known in (
        ("--precision", spec.precision, target.precisions),
        ("--mode", spec.mode, target.modes),
    ):
        if value not in known:
            raise RdError(f"{option} {value} is not possible for {spec.target}", hint=f"known: {', '.join(known)}")
    honours: Callable[[Recipe], dict[str, Any]] | None = getattr(target, "honours", None)
    require(spec.recipe, spec.target, {**PLAIN, **(honours(spec.recipe) if honours is not None else {})})
