"""A head: from the outputs of some layers to the numbers of a task, frame by frame.

All heads are one linear layer over the layers side by side, or two with GELU between them. What probes learn besides
(mean and scale of every channel, weights of layers) is linear and multiplied into it. Heads have no memory: what a task
needs of the past is in the features, and in the decoders of ``runtime.tasks``, whose state is explicit.

Shapes: B streams, N layers, F frames, W width of a layer, K numbers per frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.runtime.tasks.contract import TaskOutput
from torch import Tensor, nn

TAKES = ("hidden", "heads")
LARGEST_WIDTH, MOST_LAYERS = 8192, 64


@dataclass(frozen=True)
class HeadConfig:
    """What ``head.json`` says: the contract of the output, and what the head stands on."""

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
