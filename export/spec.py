"""What to export, as frozen data that every stage reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

from reuse_distill.export.capture.exported_layers import layer_numbers
from reuse_distill.export.export_options import FEATURES
from reuse_distill.export.quantise.options import preset_recipe
from reuse_distill.export.quantise.quantisation_recipe import FRONT_END, INPUT, Recipe, of_precision
from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.runtime.geometry import (
    RECEPTIVE_FIELD_SAMPLES,
    SAMPLE_RATE_HZ,
    WINDOW_CHUNK_FRAMES,
    WINDOW_LEFT_FRAMES,
    WINDOW_RIGHT_FRAMES,
)
from reuse_distill.runtime.tasks import TaskOutput
from reuse_distill.runtime.tasks.xvector import XVectorWeights
from reuse_distill.student import ChunkContext, ChunkSchedule, StudentConfig
from reuse_distill.student.tasks import LoadedHead

# Candidates of static int8 -> blocks that they keep in float besides the recipe's own, cheapest on a device first.
CANDIDATES: dict[str, tuple[str, ...]] = {"int8": (), "float": (FRONT_END,), "float-input": (FRONT_END, INPUT)}
LARGEST_CHUNK = 64  # of an artifact whose steps have several sizes
SHORTEST_SECONDS, LONGEST_SECONDS = RECEPTIVE_FIELD_SAMPLES / SAMPLE_RATE_HZ, 3600.0  # one frame to an hour


@dataclass(frozen=True)
class WindowContext:
    """Frames of a sliding window [left | chunk | right]."""

    left_frames: int = WINDOW_LEFT_FRAMES
    chunk_frames: int = WINDOW_CHUNK_FRAMES
    right_frames: int = WINDOW_RIGHT_FRAMES

    def __post_init__(self) -> None:
        if self.chunk_frames < 1 or min(self.left_frames, self.right_frames) < 0:
            raise RdError(
                f"window of {self.left_frames} | {self.chunk_frames} | {self.right_frames} frames is not possible",
                hint="the chunk needs at least 1 frame, left and right at least 0",
            )

    @property
    def frames(self) -> int:
        return self.left_frames + self.chunk_frames + self.right_frames


@dataclass(frozen=True)
class Offline:
    """Whole utterances."""

    name: ClassVar[str] = "offline"
    max_seconds: float = 30.0  # the longest one, for targets that plan their memory

    def __post_init__(self) -> None:
        if not SHORTEST_SECONDS <= self.max_seconds <= LONGEST_SECONDS:  # nor NaN
            raise RdError(
                f"--max-seconds {self.max_seconds:g} is outside {SHORTEST_SECONDS:g}..{LONGEST_SECONDS:g}",
                hint="it is the longest utterance that the artifact takes; 30 is usual",
            )


@dataclass(frozen=True)
class SlidingWindow:
    """Windows of a fixed size, one call for each chunk in their middle."""

    name: ClassVar[str] = "window"
    context: WindowContext = field(default_factory=WindowContext)
    norm: str = "window"  # statistics of each window | calibrated: constants


@dataclass(frozen=True)
class Streaming:
    """Steps of one chunk that carry states from call to call. Raises RdError for a choice of sizes that is none."""

    name: ClassVar[str] = "streaming"
    context: ChunkContext
    batch: int | None = None  # fixed number of streams; None: any number
    # tensors: a step takes the states and returns their new rows; whole: it returns the whole next states;
    # engine: the engine keeps them (Core ML's State, OpenVINO's variables)
    states: str = "tensors"
    chunks: tuple[int, ...] = ()  # sizes that a step may have, the context's among them; none: only that one

    def __post_init__(self) -> None:
        if not self.chunks:
            return
        if list(self.chunks) != sorted(set(self.chunks)) or self.chunks[0] < 1 or self.chunks[-1] > LARGEST_CHUNK:
            raise RdError(
                f"chunks of {', '.join(map(str, self.chunks))} frames: different sizes from 1 to {LARGEST_CHUNK} are "
                "needed, smallest first"
            )
        if self.context.chunk_frames not in self.chunks:
            raise RdError(
                f"a chunk of {self.context.chunk_frames} frames is not among {', '.join(map(str, self.chunks))}",
                hint="--chunk says which of --chunks a stream begins with",
            )


Mode = Offline | SlidingWindow | Streaming


@dataclass(frozen=True)
class ExportSpec:
    """One export: ``layers`` are 1-based and in output order."""

    target: str
    mode: Mode
    precision: str
    layers: tuple[int, ...]  # of the student; of the teacher where DistilHuBERT's heads predict them
    features: str
    front_end: str = "auto"  # int8: the front end in int8, in float, or whichever keeps the bound
    max_drift: float | None = None  # int8: search for the cheapest mix of int8 and float with at most this drift
    given: Recipe | None = None  # from a file or a search; None: what the precision, or it with a preset, stands for
    preset: str | None = None  # int8: the settings of one kind of processor
    seven_bits: bool = False  # int8 without recipe or preset, where this processor's products of 8 bits overflow
    jetpack: str | None = None  # tensorrt: prepare for this one only
    gpu: str | None = None  # tensorrt-rtx: names of GPUs; None: all
    delegate: str = "xnnpack"  # executorch: who takes the operations
    tasks: tuple[LoadedHead, ...] = ()  # heads; ``layers`` are then all that the features shown and the heads need
    shown: tuple[int, ...] | None = None  # layers among the outputs; None: ``layers``; empty: heads alone
    tasks_in_float: bool = False  # quantised artifacts whose target can: heads stay in float
    schedule: ChunkSchedule | None = None  # of the reference: chunks of several sizes in place of the mode's one

    @property
    def chunk_context(self) -> ChunkContext | None:
        """The chunk and left context that attention is limited to; None where it sees everything in its call."""
        return self.mode.context if isinstance(self.mode, Streaming) else None

    @property
    def reference_context(self) -> ChunkContext | ChunkSchedule | None:
        """What torch computes the reference with: the schedule, where there is one."""
        return self.chunk_context if self.schedule is None else self.schedule

    @property
    def shown_layers(self) -> tuple[int, ...]:
        """Layers whose features come out."""
        return self.layers if self.shown is None else self.shown

    @property
    def task_contracts(self) -> tuple[TaskOutput, ...]:
        """The contract of every head's output."""
        return tuple(task.contract for task in self.tasks)

    @property
    def decoder_weights(self) -> dict[str, XVectorWeights]:
        """What decoders of x-vectors compute with, by the name of the head."""
        return {task.name: task.xvector for task in self.tasks if task.xvector is not None}

    @property
    def recipe(self) -> Recipe:
        """What is quantised and how, but for what ``front_end`` adds."""
        plain = self.given
        if plain is None:
            plain = of_precision(self.precision) if self.preset is None else preset_recipe(self.preset, self.precision)
            plain = dataclasses.replace(plain, reduce_range=True) if self.seven_bits else plain
        return plain.also_in_float(["heads"]) if self.tasks_in_float else plain

    def recipe_of(self, candidate: str) -> Recipe:
        """The recipe of one candidate; of others than static int8's it is the spec's own."""
        return self.recipe.also_in_float(CANDIDATES.get(candidate, ()))


def parse_layers(text: str, config: StudentConfig, features: str = "hidden") -> tuple[int, ...]:
    """``last``, ``all`` or 1-based numbers such as ``3,7,11`` -> layers; the teacher's, for heads that predict some.

    Raises RdError for anything else, for a layer that there is not and for one given twice.
    """
    known = layer_numbers(config, features)
    if text == "last":
        return known[-1:]
    if text == "all":
        return known
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise RdError(f"--layers {text!r} is not last, all or numbers such as 3,7,11") from None
    outside = [n for n in numbers if n not in known]
    if outside and known != tuple(range(1, known[-1] + 1)):
        predicted = ", ".join(map(str, known))
        raise RdError(f"--layers: {outside[0]} is none that the heads predict", hint=f"they predict {predicted}")
    if outside:
        raise RdError(f"--layers: {outside[0]} is outside 1..{known[-1]}", hint="layers count from 1")
    if len(set(numbers)) != len(numbers):
        raise RdError(f"--layers {text!r} names a layer twice")
    return numbers


def check_features(features: str | None, config: StudentConfig) -> str:
    """``heads`` or ``hidden``; where not given, what the authors evaluate: heads if there is one for every layer."""
    own = config.head_width is not None and config.head_kind == "layerwise"
    chosen = features or ("heads" if own else "hidden")
    if chosen not in FEATURES:
        raise RdError(f"--features {chosen!r} is unknown", hint=nearest(chosen, FEATURES))
    if chosen == "heads" and config.head_width is None:
        raise RdError("this student has no projection heads", hint="use --features hidden")
    return chosen


def feature_width(features: str, config: StudentConfig) -> int:
    """Width W of the exported features."""
    if features == "heads":
        assert config.head_width is not None  # noqa: S101  (check_features has seen to it)
        return config.head_width
    return config.width
