"""Recipes: every setting of a distillation as frozen data, read from YAML, unknown keys refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reuse_distill.distill.compress.gates import GateSettings
from reuse_distill.distill.masks import SpanMask
from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ
from reuse_distill.runtime.untrusted_input import from_dict, to_dict
from reuse_distill.student import ChunkContext, StudentConfig, preset

FOLDER = Path(__file__).parent / "recipes"
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
TEACHER_PRECISIONS = ("auto", "float32", "float16", "bfloat16")
TEACHER_HEARS = ("augmented", "clean")
TARGET_NORMS = ("none", "layer")
LOSSES = ("masking", "hint", "star", "heads", "clusters", "align")
MASKED_LOSSES = frozenset({"masking", "clusters"})  # whose student sees a masked input
FRAME_S = RECEPTIVE_FIELD_SAMPLES / SAMPLE_RATE_HZ
MOST = 2**63 - 1


def _member(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RdError(f"{name} is {value!r}", hint=nearest(value, known))


def _within(name: str, value: float, low: float, high: float, but: str = "") -> None:
    if not low <= value <= high:
        bounds = f"at least {low:g}" if high in (math.inf, MOST) else f"within {low:g}..{high:g}"
        raise RdError(f"{name} is {value:g}", hint=f"{but}it is {bounds}")


def _check_range(name: str, values: tuple[float, ...], low: float, high: float, *, needed: bool = False) -> None:
    for value in values:
        _within(f"a number of {name}", value, low, high)
    if (values or needed) and (len(values) != 2 or not values[0] <= values[1]):
        raise RdError(f"{name} is {list(values)}", hint="two numbers, the smaller first, such as [5, 20]")


@dataclass(frozen=True)
class StudentSettings:
    """A preset and the fields of StudentConfig that differ from it."""

    preset: str = "tiny"
    changes: dict[str, Any] = field(default_factory=dict)
    from_teacher: bool = False  # start with the teacher's front end, positional convolution and first layers
    fit_teacher: bool = False  # heads of the teacher's width, and each layer taught by the teacher's at its depth

    def config(self) -> StudentConfig:
        """The StudentConfig; raises RdError for an unknown preset, field or a value of another type."""
        base = to_dict(preset(self.preset))
        return from_dict(StudentConfig, {**base, **self.changes}, where="student.changes")


@dataclass(frozen=True)
class LossSettings:
    """What is minimised. ``masking``: as ARMHuBERT. ``hint``: the same layers, unmasked (FitHuBERT). ``star``: STaR.

    ``heads``: DistilHuBERT. ``clusters``: DiceHuBERT (``cluster_loss``). ``align``: LASER (``alignment_loss``).
    ``mix`` adds others to ``kind``, each with its weight: ``mix: {star: 0.5}``.
    """

    kind: str = "masking"
    mix: dict[str, float] = field(default_factory=dict)
    distance: str = "mse"  # mse | l1
    count: str = "valid"  # valid: padding left out | public: padded frames counted, as published
    hint_weight: float = 0.1
    rec_weight: float = 1.0
    hint_layers: int | None = None  # layers drawn per batch besides the last; None: all
    layer_grad_scale: bool = False
    front_end_grad_scale: float = 1.0  # share of the gradient that reaches the student's convolutions
    cosine_weight: float = 1.0  # heads: weight of -log sigmoid(cosine similarity) beside the distance
    layerwise_weight: float = 1.0  # star: temporal Gram matrix of each layer
    intra_weight: float = 1.0  # star: Gram matrix between a layer's input and its output
    attention_weight: float = 0.0  # star: KL of the head-averaged attention maps
    normalisation: str = "scale_free"  # star: scale_free (1/D in G, mean over frame pairs) | none
    layer_groups: int = 0  # hint: groups of like layers whose means are compared (SKILL); 0: every layer by itself
    groups: tuple[tuple[int, ...], ...] = ()  # hint: the groups; found from the data where only their number is given
    clusters: int = 100  # clusters: how many codes
    cluster_layer: int = 0  # clusters: of the layers that teach, from 1; 0: the last
    unmasked_weight: float = 0.0  # clusters: of frames that the student sees
    align_speeds: tuple[float, ...] = (0.9, 1.0, 1.1)  # align: of the perturbed copy, one is drawn per batch
    align_gamma: float = 0.1  # align: softness of the alignment
    align_weight: float = 0.4  # align: of the temporal regulariser
    align_sigma: int = 0  # align: frames that may be like each other
    align_margin: float = 1.1  # align: least distance of the others
    target_norm: str = "none"  # layer: targets after a layer norm without parameters (residual streams) | none

    def __post_init__(self) -> None:
        for name, value, known in (
            ("kind", self.kind, LOSSES),
            ("distance", self.distance, ("mse", "l1")),
            ("count", self.count, ("valid", "public")),
            ("normalisation", self.normalisation, ("scale_free", "none")),
            ("target_norm", self.target_norm, TARGET_NORMS),
        ):
            _member(f"loss.{name}", value, known)
        if self.hint_layers is not None:
            _within("loss.hint_layers", self.hint_layers, 0, MOST)
        for name, weight in self.mix.items():
            _member("a key of loss.mix", name, LOSSES)
            if name == self.kind or not 0 < weight < math.inf:
                raise RdError(
                    f"loss.mix has {name} with weight {weight:g}, loss.kind is {self.kind}",
                    hint="loss.mix names other losses, with weights above 0",
                )
        _within("loss.layer_groups", self.layer_groups, 0, MOST)
        _within("loss.clusters", self.clusters, 2, 100_000)
        _within("loss.cluster_layer", self.cluster_layer, 0, MOST)
        _within("loss.align_gamma", self.align_gamma, 1e-6, math.inf)
        _within("loss.align_weight", self.align_weight, 0, math.inf)
        _within("loss.align_sigma", self.align_sigma, 0, MOST)
        _within("loss.align_margin", self.align_margin, 0, 4)
        if not self.align_speeds or any(not 0.5 <= speed <= 2 for speed in self.align_speeds):
            raise RdError(f"loss.align_speeds are {list(self.align_speeds)}", hint="each is within 0.5..2")
        _within("loss.unmasked_weight", self.unmasked_weight, 0, math.inf)
        if (self.layer_groups or self.groups) and "hint" not in self.weights:
            raise RdError("loss.layer_groups without the loss hint", hint="loss.kind=hint, or leave the groups out")
        _within("loss.front_end_grad_scale", self.front_end_grad_scale, 0, 1)
        for name in ("hint", "rec", "cosine", "layerwise", "intra", "attention"):
            _within(f"loss.{name}_weight", getattr(self, f"{name}_weight"), 0, math.inf)

    @property
    def weights(self) -> dict[str, float]:
        """Every loss that takes part, with its weight."""
        return {self.kind: 1.0, **self.mix}


@dataclass(frozen=True)
class OptimiserSettings:
    """AdamW with linear warm-up and linear decay to zero."""

    lr: float = 5.0e-4
    betas: tuple[float, ...] = (0.9, 0.98)
    eps: float = 1.0e-6
    weight_decay: float = 0.01
    warmup: float = 0.05  # share of all steps
    clip_norm: float = 10.0  # largest L2 norm of the gradient; 0: no clipping

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf or not 0 <= self.warmup < 1 or len(self.betas) != 2:
            raise RdError(
                f"optimiser: lr {self.lr}, warmup {self.warmup}, betas {list(self.betas)}",
                hint="lr is above 0, warmup is a share of the steps in 0..1, betas are two numbers",
            )
        for beta in self.betas:
            _within("a number of optimiser.betas", beta, 0, 1 - 1e-9)
        for name in ("eps", "weight_decay", "clip_norm"):
            _within(f"optimiser.{name}", getattr(self, name), 0, math.inf)


@dataclass(frozen=True)
class DataSettings:
    """How audio becomes batches."""

    batch_size: int = 12  # most utterances in a batch
    batch_seconds: float = 200.0  # most seconds in a batch, padding included: lower it when memory runs out
    crop_seconds: float = 0.0  # longest piece of an utterance; 0: whole utterances
    buckets: int = 10  # groups of similar length; more: less padding, less mixing
    bad_limit: float = 0.05  # share of unreadable files above which training stops
    split: str | None = None  # value of the manifest's column 'split' to train on; None: all
    workers: int = 2  # reading threads
    mixed_shards: int = 8  # lhotse Shar: shards whose utterances share batches
    gain_db: float = 0.0  # augmentation: gain drawn from -gain_db..gain_db
    student_gain_db: tuple[float, ...] = ()  # augmentation of the student's side: gain drawn from lowest..highest
    narrow_band_probability: float = 0.0  # augmentation of the student's side: share heard without what is above 4 kHz
    cache_gib: float = 0.0  # decoded audio that is kept in memory, so that each file is read once; 0: none
    noise_snr_db: float | None = None  # augmentation: white noise at this ratio or better; None: off
    speeds: tuple[float, ...] = ()  # augmentation: one is drawn per utterance and epoch, 0.9 is slower; empty: off
    noise: str | None = None  # augmentation: recordings of noise (folder, manifest, cuts or Shar on disk); None: off
    noise_snr_range_db: tuple[float, ...] = (5.0, 20.0)  # power of the speech over that of recorded noise, drawn
    noise_probability: float = 0.5  # share of the utterances that get recorded noise
    rooms: str | None = None  # augmentation: impulse responses of rooms, as noise is given; None: off
    rooms_probability: float = 0.5  # share of the utterances that are heard in a room
    teacher_hears: str = "augmented"  # clean: noise and rooms are the student's only; gain and speed are always common

    def __post_init__(self) -> None:
        _member("data.teacher_hears", self.teacher_hears, TEACHER_HEARS)
        _within("data.noise_probability", self.noise_probability, 0, 1)
        _within("data.rooms_probability", self.rooms_probability, 0, 1)
        _check_range("data.noise_snr_range_db", self.noise_snr_range_db, -100, 100, needed=True)
        if any(not 0.5 <= speed <= 2 for speed in self.speeds):
            raise RdError(f"data.speeds are {list(self.speeds)}", hint="each is within 0.5..2, such as [0.9, 1.0, 1.1]")
        for name in ("batch_size", "buckets", "mixed_shards"):
            _within(f"data.{name}", getattr(self, name), 1, MOST)
        _within("data.workers", self.workers, 1, 64)  # as many batches are read ahead
        _within("data.batch_seconds", self.batch_seconds, FRAME_S, math.inf)
        if self.noise_snr_db is not None:
            _within("data.noise_snr_db", self.noise_snr_db, -100, 100)
        _within("data.bad_limit", self.bad_limit, 0, 1)
        _within("data.gain_db", self.gain_db, 0, 60)
        _within("data.narrow_band_probability", self.narrow_band_probability, 0, 1)
        _within("data.cache_gib", self.cache_gib, 0, math.inf)
        _check_range("data.student_gain_db", self.student_gain_db, -80, 40)
        if self.crop_seconds != 0:
            _within("data.crop_seconds", self.crop_seconds, FRAME_S, math.inf, "0 is no cropping; ")


@dataclass(frozen=True)
class TrainingSettings:
    """How long, how often saved, in which precision."""

    steps: int = 0  # optimiser steps; 0: from epochs
    epochs: int = 0
    last_layers: int = 0  # train only so many of the last layers and their projection heads; 0: everything
    accumulate: int = 1  # batches per step and process
    precision: str = "auto"  # auto: bf16-mixed on CUDA, 32-true elsewhere
    teacher_precision: str = "auto"  # auto: float16 on CUDA, float32 elsewhere
    fake_quant: bool = False  # simulate int8 weights and activations (quantisation-aware training)
    checkpoint_every: int = 200  # steps
    validate_every: int = 0  # steps between held-out losses; 0: with every checkpoint
    keep_best: int = 3  # checkpoints with the lowest held-out loss that are kept beside the last one
    seed: int = 0

    def __post_init__(self) -> None:
        _member("training.precision", self.precision, PRECISIONS)
        _member("training.teacher_precision", self.teacher_precision, TEACHER_PRECISIONS)
        if (self.steps > 0) == (self.epochs > 0):
            raise RdError(
                f"training.steps is {self.steps} and training.epochs is {self.epochs}",
                hint="give exactly one of them, the other is 0",
            )
        for name in ("steps", "epochs", "seed", "validate_every", "keep_best", "last_layers"):
            _within(f"training.{name}", getattr(self, name), 0, MOST)
        for name in ("accumulate", "checkpoint_every"):
            _within(f"training.{name}", getattr(self, name), 1, MOST)


@dataclass(frozen=True)
class TrainingRecipe:
    """One distillation, whole. ``contexts``: drawn per batch; null is full context."""

    name: str
    summary: str
    training: TrainingSettings
    student: StudentSettings = StudentSettings()
    loss: LossSettings = LossSettings()
    mask: SpanMask = field(default_factory=SpanMask)
    optimiser: OptimiserSettings = OptimiserSettings()
    data: DataSettings = DataSettings()
    gates: GateSettings = field(default_factory=GateSettings)  # of rd-distill compress gates and pinch
    contexts: tuple[ChunkContext | None, ...] = (None,)

    def __post_init__(self) -> None:
        if not self.contexts:
            raise RdError("contexts is empty", hint="contexts: [null] is full context")


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return shipped_names(FOLDER)


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> TrainingRecipe:
    """A shipped recipe by name, or one from a YAML file, with ``key=value`` overrides (dotted keys).

    Raises RdError for an unknown name or key and for a value of another type.
    """
    path, data = named_settings(name_or_path, overrides, folder=FOLDER, what="recipe")
    return from_dict(TrainingRecipe, data, where=path.name)


def changed(recipe: TrainingRecipe, **sections: dict[str, Any]) -> TrainingRecipe:
    """The recipe with fields of sections replaced: ``changed(recipe, training={"steps": 10})``."""
    new = {name: dataclasses.replace(getattr(recipe, name), **values) for name, values in sections.items()}
    return dataclasses.replace(recipe, **new)


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ, as ``key: old -> new``."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines


def shipped_names(folder: Path) -> list[str]:
    """Names of the YAML files of settings in ``folder``."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def named_settings(
    name_or_path: str, overrides: Sequence[str], *, folder: Path, what: str
) -> tuple[Path, dict[str, Any]]:
    """(file, settings) of a YAML file, or of one in ``folder`` by its name, with ``key=value`` overrides (dotted keys).

    The settings have a ``name``: the file's where they name none. Raises RdError where there is no such file (``what``
    it would be of), and for one that is no mapping.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = folder / f"{name_or_path}.yaml"
        if not path.is_file():
            raise RdError(f"there is no {what} {name_or_path!r}", hint=nearest(name_or_path, shipped_names(folder)))
    data = _read_yaml(path)
    for override in overrides:
        _apply(data, override)
    data.setdefault("name", path.stem)
    return path, data


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RdError(f"{path}: not a readable recipe: {reason}") from None
    if not isinstance(data, dict):
        raise RdError(f"{path}: a recipe is a mapping of settings, found {type(data).__name__}")
    return data


def _apply(data: dict[str, Any], override: str) -> None:
    """Set the dotted key of ``key=value``; the value is YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RdError(f"{override!r} is not an override", hint="write key=value, for example optimiser.lr=1e-3")
    *sections, last = key.split(".")
    for section in sections:
        below = data.setdefault(section, {})
        if not isinstance(below, dict):
            raise RdError(f"{key}: {section} is not a section", hint="see rd-distill recipes --show NAME")
        data = below
    data[last] = _value(text)


def _value(text: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RdError(
            f"{text!r} is not a value", hint="write a number, true, false, null, a word or [a, list]"
        ) from None
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a word
        try:
            return float(value)
        except ValueError:
            return value
    return value
