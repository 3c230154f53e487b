"""Heads on top of a student: from the outputs of some layers to the numbers of a task by frame; and head folders.

All heads are one linear layer over the layers side by side, or two with GELU between them. What probes learn besides
(mean and scale of every channel, weights of layers) is linear and multiplied into it. Heads have no memory: what a task
needs of the past is in the features, and in the decoders of ``runtime.tasks``, whose state is explicit.

A folder holds ``head.json`` + ``head.safetensors``, bound to the student whose features it was trained on.

Shapes: B streams, N layers, F frames, W width of a layer, K numbers per frame.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from reuse_distill.runtime.bundle_format.bundle import file_sha256
from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.runtime.tasks import TaskOutput
from reuse_distill.runtime.tasks.xvector import XVectorWeights
from reuse_distill.runtime.untrusted_input import from_dict, to_dict
from reuse_distill.runtime.whole_files import folder_beside, with_usual_modes
from torch import Tensor, nn

TAKES = ("hidden", "heads")
LARGEST_WIDTH, MOST_LAYERS = 8192, 64
SCHEMA_VERSION = 1
HEAD, HEAD_WEIGHTS, CARD = "head.json", "head.safetensors", "README.md"
LARGEST_JSON_BYTES = 8 << 20
HEADER_ROOM_BYTES = 64 << 10  # of a safetensors file, beside its numbers


@dataclass(frozen=True)
class HeadConfig:
    """What ``head.json`` says: the contract of the output, and what the head takes."""

    output: TaskOutput
    student_sha256: str  # of the student's weights that it was trained on
    layers: tuple[int, ...]  # from 1, in the order of the weights' columns; 0: what layer 1 sees
    width: int  # W
    takes: str = "hidden"  # hidden: outputs of layers | heads: what the projection heads make of them
    inner_width: int | None = None  # of the first of two linear layers; None: there is one
    student_name: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)  # data, licence, how it was made
    metrics: dict[str, Any] = field(default_factory=dict)  # what was measured, on what

    def __post_init__(self) -> None:
        where = f"head {self.output.name!r}"
        if self.takes not in TAKES:
            raise RdError(f"{where}: takes {self.takes!r} is unknown", hint=nearest(self.takes, TAKES))
        if not self.layers or len(set(self.layers)) != len(self.layers) or min(self.layers) < 0:
            raise RdError(f"{where}: layers {list(self.layers)} are not different numbers from 0")
        if len(self.layers) > MOST_LAYERS:
            raise RdError(f"{where}: {len(self.layers)} layers, {MOST_LAYERS} at most")
        for name, value in (("width", self.width), ("inner_width", self.inner_width)):
            if value is not None and not 1 <= value <= LARGEST_WIDTH:
                raise RdError(f"{where}: {name} {value} is outside 1..{LARGEST_WIDTH}")

    @property
    def scores(self) -> int:
        """Outputs of the last linear layer."""
        return self.output.size if self.output.kind == "units" else self.output.columns

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the weights file."""
        inputs, inner = len(self.layers) * self.width, self.inner_width
        sizes: dict[str, tuple[int, ...]] = {}
        if inner is not None:
            sizes |= {"inner.weight": (inner, inputs), "inner.bias": (inner,)}
        return sizes | {"outer.weight": (self.scores, inner or inputs), "outer.bias": (self.scores,)}


class TaskHead(nn.Module):
    """[B, N, F, W] -> [B, F, K], as ``HeadConfig.output`` says."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config, inner = config, config.inner_width
        inputs = len(config.layers) * config.width
        self.inner = None if inner is None else nn.Linear(inputs, inner)
        self.outer = nn.Linear(inner or inputs, config.scores)

    def scores(self, features: Tensor) -> Tensor:
        """[B, N, F, W] -> what the last linear layer gives, [B, F, scores]."""
        if features.shape[1] == 1:
            x = features[:, 0]
        else:
            x = torch.cat([features[:, n] for n in range(features.shape[1])], dim=-1)  # [B, F, N W]
        return self.outer(x if self.inner is None else nn.functional.gelu(self.inner(x)))

    def forward(self, features: Tensor) -> Tensor:
        scores, kind = self.scores(features), self.config.output.kind
        if kind == "ctc":
            return scores.log_softmax(-1)
        if kind == "spot":
            return scores.softmax(-1)
        if kind == "units":
            return scores.argmax(-1, keepdim=True).to(torch.int32)
        return scores


def linear_of_units(centroids: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (U, D) and bias (U,) whose largest score is at the nearest centroid.

    ``centroids`` (U, D) of normalised features (x - mean) * scale, (D,) each. The square of x is the same for all:
    argmin |z - c|² = argmax z.c - |c|²/2.
    """
    weight = centroids * scale
    return weight, -0.5 * centroids.square().sum(1) - weight @ mean


def folded_linear(weight: Tensor, bias: Tensor, *, mix: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """A linear layer over a weighted mean of normalised layers, as one over the layers side by side.

    ``weight`` (K, W), ``bias`` (K,); ``mix`` (N,) weights of layers; ``mean``, ``scale`` (N, W). Gives (K, N W), (K,).
    """
    parts = mix[:, None] * scale  # (N, W)
    full = torch.cat([weight * part for part in parts], dim=1)
    return full, bias - full @ mean.flatten()


@dataclass(frozen=True)
class LoadedHead:
    """A head ready to use, and what identifies it."""

    module: TaskHead
    sha256: str  # of its weights
    xvector: XVectorWeights | None = None  # what the decoder of an x-vector computes with

    @property
    def config(self) -> HeadConfig:
        return self.module.config

    @property
    def contract(self) -> TaskOutput:
        """The contract of the output, with what identifies the head: what a manifest says about it."""
        source = {"weights_sha256": self.sha256, **self.config.provenance}
        return dataclasses.replace(self.config.output, source=source)

    @property
    def name(self) -> str:
        return self.config.output.name

    def check_fits(self, *, sha256: str, width: int, known: tuple[int, ...], where: str) -> None:
        """Raises RdError where the head is of another student, width or layer than the student's."""
        config = self.config
        if config.width != width:
            raise RdError(
                f"head {self.name!r} takes features of width {config.width}, {where} gives {width}",
                hint=f"take the student that it was trained on ({config.student_name or 'another one'}), "
                "or train a head on this one: rd-distill head",
            )
        missing = [layer for layer in config.layers if layer not in known]
        if missing:
            raise RdError(f"head {self.name!r} takes layer {missing[0]}, {where} has {known[0]}..{known[-1]}")
        if config.student_sha256 != sha256:
            trained = f"{config.student_name} ({config.student_sha256[:12]}…)".strip()
            raise RdError(
                f"head {self.name!r} was trained on other weights: {trained}, {where} has {sha256[:12]}…",
                hint="train it on this student: rd-distill head KIND --student …",
            )


def save_head(folder: str | os.PathLike[str], head: TaskHead, *, card: str | None = None) -> Path:
    """Write a head folder whole or not at all; replaces an older head, nothing else.

    ``card``: text of a README.md beside it. Raises RdError where the folder holds something else or cannot be written.
    """
    from safetensors.torch import save_file

    target = Path(folder)
    others = _others(target)
    if others:
        raise RdError(f"{target}: not replaced, it holds {others[0]}, which is not part of a head")
    data = {"schema_version": SCHEMA_VERSION, "head": to_dict(head.config)}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            new = folder_beside(Path(scratch) / "head")
            text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            (new / HEAD).write_text(text, encoding="utf-8")
            save_file({k: v.detach().float().contiguous() for k, v in head.state_dict().items()}, new / HEAD_WEIGHTS)
            if card is not None:
                (new / CARD).write_text(card, encoding="utf-8")
            if target.exists():
                target.rename(Path(scratch) / "old")
            with_usual_modes(new).rename(target)
    except OSError as error:
        raise RdError(
            f"{target}: head not written ({error.strerror})", hint="free disk space, or another place"
        ) from None
    return target


def load_head(folder: str | os.PathLike[str]) -> LoadedHead:
    """The head of a folder, in eval mode.

    Raises RdError for a missing, damaged or too large file, an unknown key, another schema, tensors that are not the
    ones of the configuration, and values that are not finite. Sizes are checked before anything is read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder)
    config, weights = read_head_config(path), path / HEAD_WEIGHTS
    if config.output.kind == "xvector":
        raise RdError(f"{path}: x-vectors are not stored as head folders", hint="they belong to an encoder: --head own")
    if not weights.is_file():
        raise RdError(f"{path}: {HEAD_WEIGHTS} is missing", hint="copy the whole head folder")
    expected = sum(4 * _count(shape) for shape in config.shapes.values())
    size_bytes = weights.stat().st_size
    if size_bytes > expected + HEADER_ROOM_BYTES:
        raise RdError(f"{weights}: {size_bytes} bytes, {HEAD} describes {expected}", hint="copy the head again")
    try:
        state = load_file(weights)
    except (SafetensorError, OSError, ValueError) as error:
        raise RdError(f"{weights}: damaged or cut short ({error})", hint="copy the head again") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if shapes != config.shapes:
        wrong = sorted(set(shapes.items()) ^ set(config.shapes.items()))[0][0]
        raise RdError(f"{weights}: {wrong} is {shapes.get(wrong, 'missing')}, {HEAD} says {config.shapes.get(wrong)}")
    for name, tensor in state.items():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise RdError(f"{weights}: {name} is not finite float32", hint="train the head again")
    module = TaskHead(config).eval()
    module.load_state_dict(state)
    return LoadedHead(module.requires_grad_(False), file_sha256(weights))


def read_head_config(folder: str | os.PathLike[str]) -> HeadConfig:
    """What ``head.json`` says. Raises RdError for what is no such file."""
    file = Path(folder) / HEAD
    if not file.is_file():
        raise RdError(f"{folder}: not a head folder, there is no {HEAD}", hint="rd-distill head writes them")
    if file.stat().st_size > LARGEST_JSON_BYTES:
        raise RdError(f"{file}: {file.stat().st_size} bytes, {LARGEST_JSON_BYTES} at most")
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RdError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(data, dict) or not isinstance(data.get("head"), dict):
        raise RdError(f"{file}: there is no section 'head'")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise RdError(f"{file}: schema version {data.get('schema_version')}, this version reads {SCHEMA_VERSION}")
    return from_dict(HeadConfig, data["head"], where=f"{file}: head")


def _others(target: Path) -> list[str]:
    if not target.exists():
        return []
    if not target.is_dir():
        return [target.name]
    return sorted(entry.name for entry in target.iterdir() if entry.name not in (HEAD, HEAD_WEIGHTS, CARD))


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
