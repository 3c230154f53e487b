"""``Recipe``: what is quantised and how, one for all targets, as JSON in and out.

A target that cannot honour a field refuses it by name (``require``); none is ignored.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.runtime.untrusted_input import from_dict, to_dict
from reuse_distill.student import StudentConfig

FRONT_END = "front-end"
INPUT = "input"  # the projection from the front end into the encoder
CHOICES: dict[str, tuple[Any, ...]] = {
    "weights": ("float", "int8", "int4", "palette-6", "palette-4"),
    "activations": ("float", "int8-static", "int8-dynamic"),
    "floats": ("fp32", "fp16", "bf16", None),
    "method": ("minmax", "percentile", "entropy"),
}
# What a target takes that says nothing else.
PLAIN: dict[str, tuple[Any, ...] | None] = {
    "method": ("minmax",),
    "per_channel": (True,),
    "symmetric_activations": (None,),
    "reduce_range": (False,),
    "in_float": ((),),
    "preset": (None,),
}
OWN_FLOATS = {"tensorrt": "fp16", "coreml": "fp16"}  # of targets where it is not fp32


@dataclass(frozen=True)
class CalibratedWith:
    """The audio that gave the ranges."""

    sha256: str  # of all samples
    clips: int
    seconds: float
    speakers: int | str  # "unknown" where the source does not tell


@dataclass(frozen=True)
class Recipe:
    """What (``weights``, ``activations``, ``floats``), how (the next five), and where not (``in_float``)."""

    weights: str = "float"  # float | int8 | int4 | palette-6 | palette-4: how they are stored
    activations: str = "float"  # float | int8-static | int8-dynamic: what products compute with
    floats: str | None = None  # fp32 | fp16 | bf16: what is not quantised; None: the target's own
    method: str = "minmax"  # int8-static: minmax | percentile | entropy
    percentile: float = 99.999  # of all values of a tensor that its range keeps
    per_channel: bool = True  # weights: one scale per output channel, or one per tensor
    symmetric_activations: bool | None = None  # None: the target's own
    reduce_range: bool = False  # weights in 7 bits: for x86 processors without VNNI
    in_float: tuple[str, ...] = ()  # blocks that compute in float; their weights may still be stored small
    preset: str | None = None  # the settings' name, where they have one (export.quantise.presets)
    calibration: CalibratedWith | None = None

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                given = [k for k in known if k is not None]
                raise RdError(f"recipe: {name} {value!r} is unknown", hint=nearest(str(value), given))
        if not 50 < self.percentile <= 100:
            raise RdError(
                f"recipe: percentile {self.percentile:g} is outside 50..100", hint="99.9 to 99.9999 are usual"
            )
        if self.activations != "float" and self.weights != "int8":
            raise RdError(
                f"recipe: activations {self.activations} with weights {self.weights}: products need int8 weights",
                hint='set weights to "int8"',
            )
        if self.in_float and self.weights == "float" and self.floats in (None, "fp32"):
            raise RdError("recipe: in_float names blocks, but nothing is less than a float", hint="leave it out")
        if len(set(self.in_float)) != len(self.in_float):
            raise RdError(f"recipe: in_float names a block twice: {', '.join(self.in_float)}")

    @property
    def calibrates(self) -> bool:
        """Whether ranges of activations have to be measured."""
        return self.activations == "int8-static"

    @property
    def quantises(self) -> bool:
        """Whether anything is less than a float."""
        return self.weights != "float"

    def precision(self, target: str) -> str:
        """The short name of what is quantised, as ``--precision`` takes it."""
        own = OWN_FLOATS.get(target, "fp32")
        mine = (self.weights, self.activations, self.floats or own)
        for name, other in SHORT.items():
            if (other.weights, other.activations, other.floats or own) == mine:
                return name
        raise RdError(
            f"recipe: weights {self.weights}, activations {self.activations}, floats {mine[2]}: no target has that",
            hint=f"leave floats out, or use what --precision makes: {', '.join(SHORT)}",
        )

    def keeps_in_float(self, block: str) -> bool:
        """Whether ``block`` or a block that it is part of stays in float."""
        return block in self.in_float or block.rsplit(".", 1)[0] in self.in_float

    def also_in_float(self, blocks: Sequence[str]) -> Recipe:
        """The same with more blocks in float."""
        added = tuple(block for block in blocks if block not in self.in_float)
        return dataclasses.replace(self, in_float=(*self.in_float, *added))


SHORT = {
    "fp32": Recipe(floats="fp32"),
    "fp16": Recipe(floats="fp16"),
    "bf16": Recipe(floats="bf16"),
    "int8": Recipe("int8", "int8-static"),
    "int8-fp32": Recipe("int8", "int8-static", "fp32"),
    "int8-dynamic": Recipe("int8", "int8-dynamic"),
    "int8-weights": Recipe("int8"),
    "int4-weights": Recipe("int4"),
    "palette-6": Recipe("palette-6"),
    "palette-4": Recipe("palette-4"),
}


def of_precision(name: str) -> Recipe:
    """The recipe that ``--precision NAME`` stands for; raises RdError with the nearest name."""
    if name not in SHORT:
        raise RdError(f"--precision {name} is unknown", hint=nearest(name, list(SHORT)))
    return SHORT[name]


def read_recipe(file: Path) -> Recipe:
    """A recipe from JSON; raises RdError for anything that is not one, with the nearest known key."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RdError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RdError(f"{file}: is not JSON: {error}") from None
    return from_dict(Recipe, data, where=str(file))


def recipe_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as ``read_recipe`` takes it back."""
    return to_dict(recipe)


def block_names(config: StudentConfig) -> tuple[str, ...]:
    """Every block of the student that ``in_float`` may name, from the audio up.

    ``front-end`` stands for all of its convolutions, ``front-end.K`` for convolution K and what follows it up to the
    next. They count from 0; that one is never quantised, and what follows it belongs to 1. A log-mel is 0.
    """
    last = 0 if config.front_end == "fbank" else len(config.conv_layers) - (config.front_end == "conv")
    names = [FRONT_END, *(f"{FRONT_END}.{k}" for k in range(1, last + 1))]
    names += [INPUT] if config.projects_input else []
    names += ["position"]
    for number in range(1, config.layers + 1):
        names += [f"layer.{number}.attention", f"layer.{number}.ffn"]
    return (*names, "heads") if config.head_width is not None else tuple(names)


def check_blocks(blocks: Sequence[str], config: StudentConfig) -> None:
    """Raises RdError for a name that the student has no block for, with the nearest one."""
    known = block_names(config)
    for block in blocks:
        if block not in known:
            layer = re.fullmatch(r"layer\.(\d+)\.(attention|ffn)", block)
            hint = f"this student has layers 1 to {config.layers}" if layer else nearest(block, known)
            raise RdError(f"recipe: in_float: the student has no block {block!r}", hint=hint)


def require(recipe: Recipe, target: str, honoured: Mapping[str, Sequence[Any] | None]) -> None:
    """Raises RdError for the first field whose value is not among ``honoured[field]``; None there: any value."""
    for name, values in honoured.items():
        value = getattr(recipe, name)
        if values is not None and value not in values:
            raise RdError(
                f"recipe: {target} cannot honour {name} {_as_text(value)}",
                hint=f"possible there: {', '.join(_as_text(v) for v in values)}",
            )


def _as_text(value: Any) -> str:
    return "nothing" if value in (None, ()) else json.dumps(value)
