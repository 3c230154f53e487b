"""One folder per target, each behind the same small interface.

``make`` converts and quantises, ``read_graph`` gives the finished artifact to the graph proof, ``run`` and ``layers``
give its numbers to the parity check. The pipeline does the rest, alike for all.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from reuse_distill.export.capture.capture import Capture
from reuse_distill.export.export_options import MODES, REGISTRY
from reuse_distill.export.proof import ProofGraph
from reuse_distill.export.quantise.calibration import CalibrationSet
from reuse_distill.export.quantise.quantisation_recipe import PLAIN, Recipe, block_names, of_precision, require
from reuse_distill.export.spec import CANDIDATES, ExportSpec, Streaming
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.manifest import State
from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.student import StudentConfig

T = TypeVar("T")


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

    @property
    def float_weight_bytes(self) -> int:
        """Bytes of the student's weights in float32, heads included."""
        return 4 * sum(weight.numel() for weight in self.captured.whole().parameters())


@dataclass(frozen=True)
class Made:
    """What a target made of a job; ``status`` is ``deferred`` where the device itself has to finish it."""

    artifact: str  # file or folder name inside the bundle
    states: tuple[State, ...]
    quantisation: dict[str, Any] = field(default_factory=dict)
    status: str = "built"
    device: dict[str, Any] | None = None
    packages: tuple[str, ...] = ()  # whose versions the manifest notes
    prepared: str = ""  # what ``run`` runs where the artifact is not there yet or needs another machine


class Opened(Generic[T]):
    """What compares a bundle, such as an encoder: opened once for all recordings, again when its files have changed.

    Opening takes as long as many recordings do: files are hashed, parsed, and compiled for this machine.
    """

    def __init__(self) -> None:
        self._files: Any = None
        self._value: T | None = None

    def of(self, bundle: Path, opened: Callable[[], T]) -> T:
        """``opened()``, or what it returned for these files before."""
        files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(bundle.rglob("*"))]
        if self._value is None or self._files != files:
            self._value = None  # not two at once
            self._value, self._files = opened(), files
        return self._value


class Target(Protocol):
    """How one kind of artifact is made, proven and run for comparison. What has a body here is optional."""

    precisions: tuple[str, ...]
    modes: tuple[str, ...] = MODES
    unpacked: tuple[str, ...] = ()  # precisions whose weights the engine holds in float32 once it has loaded them
    several_chunks: bool = False  # steps of several chunk sizes in one artifact

    def adapt(self, spec: ExportSpec) -> ExportSpec:
        """The spec with what the device cannot vary fixed. Raises RdError for what it cannot run."""
        return spec

    def shaped(self, captured: Capture, spec: ExportSpec) -> Capture:
        """The capture with what the artifact's shapes cannot vary fixed."""
        return captured

    def longest_samples(self, spec: ExportSpec) -> int | None:
        """Samples of the longest utterance that the artifact takes at once; None: any, or a call has a fixed size."""
        return None

    def recipe_values(self, recipe: Recipe) -> dict[str, Any]:
        """Fields of ``recipe`` -> the values that the target can have there, None where any; of others the plain one.

        The plain values are in ``PLAIN``.
        """
        return {}

    def candidates(self, spec: ExportSpec, config: StudentConfig) -> tuple[str, ...]:
        """Ways to make the artifact of a student, cheapest on the device first; the first within the bound is taken."""
        return front_end_candidates(spec, config)

    def make(self, job: Job, candidate: str) -> Made:
        """Write the artifact into ``job.folder``. Raises RdError with the vendor tool's own message."""

    def read_graph(self, artifact: Path) -> ProofGraph:
        """The finished artifact for the graph proof."""

    def run(self, bundle: Path, job: Job, wave: np.ndarray) -> np.ndarray:
        """Features (N, F, W) of the utterance ``wave`` (T,), as the device would compute them."""

    def outputs(self, bundle: Path, job: Job, wave: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The features of ``run`` and the output (F, K) of every head, of one pass over ``wave`` (T,)."""
        if not job.spec.tasks:
            return self.run(bundle, job, wave), {}
        frames = self.encoder(bundle, job).frames(wave)
        return of_layers(frames.features, job.spec), dict(frames.heads)

    def encoder(self, bundle: Path, job: Job) -> Encoder:
        """The runtime on the artifact as it is compared; only asked where steps have several sizes."""
        return Encoder.load(bundle, provider="cpu")

    def layers(self, bundle: Path, job: Job) -> Callable[[np.ndarray], list[np.ndarray]] | None:
        """A function from ``wave`` to hidden features (F, E) after every layer; None where they cannot be reached."""
        return None

    def measured_by(self, job: Job) -> str | None:
        """What ``run`` measures with; None: the runtime."""
        return None

    def placement(self, job: Job) -> dict[str, Any] | None:
        """Execution provider of this machine -> the artifact's nodes and operators on it; None where it is unknown."""
        return None


def find_target(name: str) -> Target:
    """The target called ``name``; raises RdError with the nearest name."""
    if name not in REGISTRY:
        raise RdError(f"there is no target {name!r}", hint=nearest(name, list(REGISTRY)))
    module, attribute = REGISTRY[name].split(":")
    target: Target = getattr(importlib.import_module(module), attribute)()
    return target


def of_layers(features: np.ndarray, spec: ExportSpec) -> np.ndarray:
    """What an encoder extracted, (F, W) or (N, F, W), as (N, F, W); N is 0 without features."""
    if not spec.shown_layers:
        return np.zeros((0, *features.shape[-2:]), np.float32)
    return features.reshape(len(spec.shown_layers), -1, features.shape[-1])


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


def heads_in_float(target: Target, spec: ExportSpec) -> ExportSpec:
    """The spec whose recipe keeps task heads in float, where ``target`` quantises and can leave blocks out."""
    if not spec.tasks or not spec.recipe.quantises:
        return spec
    values = {**PLAIN, **target.recipe_values(spec.recipe)}
    return dataclasses.replace(spec, tasks_in_float=values["in_float"] is None)


def check_possible(target: Target, spec: ExportSpec) -> None:
    """Raises RdError where ``target`` has no such precision or mode, or not a value of the recipe."""
    for option, value, known in (
        ("--precision", spec.precision, target.precisions),
        ("--mode", spec.mode.name, target.modes),
    ):
        if value not in known:
            raise RdError(f"{option} {value} is not possible for {spec.target}", hint=f"known: {', '.join(known)}")
    if isinstance(spec.mode, Streaming) and spec.mode.chunks and not target.several_chunks:
        raise RdError(
            f"--chunks is not possible for {spec.target}: its steps have one fixed size",
            hint="use --target onnx, ort or openvino; or one bundle per size: a stream's snapshot moves between them",
        )
    require(spec.recipe, spec.target, {**PLAIN, **target.recipe_values(spec.recipe)})
