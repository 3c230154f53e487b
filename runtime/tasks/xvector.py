"""X-vectors: one vector for a recording's speaker, from layers that see several frames and the statistics over time.

After Snyder et al. (ICASSP 2018), as transformers' ``...ForXVector`` computes it: time-delay layers (a linear layer
over ``kernel`` frames that lie ``dilation`` apart, ReLU), mean and standard deviation of what they give over all
frames, a linear layer to the vector. The artifact gives the rows that the first of them takes; all that needs more than
one frame is here, with explicit state: the newest rows and the running statistics. Rows are computed in blocks of a
fixed size that begin at fixed frames, so a stream gives the same bits however it is cut.

Shapes: n rows, K numbers of a row, P numbers of the last time-delay layer, D of the vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks.contract import TaskEvent, TaskOutput, check_rows
from reuse_distill.runtime.untrusted_input import read_npz

BLOCK_FRAMES = 32  # rows of the last layer that are computed at once
MOST_LAYERS, MOST_CONTEXT = 16, 3000
_SIZES, _VECTOR, _LOGITS = "tdnn_sizes", "vector", "logits"  # names in the file, of linear layers without _weight
Linear = tuple[np.ndarray, np.ndarray]  # weight (out, in), bias (out,)


@dataclass(frozen=True, eq=False)
class XVectorWeights:
    """What the decoder computes with. Raises RdError where the layers do not fit one another."""

    tdnn: tuple[Linear, ...]  # weights (out, kernel * in): the oldest frame first
    sizes: tuple[tuple[int, int], ...]  # (kernel, dilation) of each
    vector: Linear  # (D, 2 P): of means, then of standard deviations
    logits: Linear  # (., D): what the vector was trained with

    def __post_init__(self) -> None:
        if not 1 <= len(self.tdnn) <= MOST_LAYERS or len(self.sizes) != len(self.tdnn):
            raise RdError(f"x-vector: {len(self.tdnn)} time-delay layers, {len(self.sizes)} sizes; 1..{MOST_LAYERS}")
        if any(kernel < 1 or dilation < 1 for kernel, dilation in self.sizes) or self.context > MOST_CONTEXT:
            raise RdError(f"x-vector: kernels and dilations {list(self.sizes)} are not possible")
        width = self.inputs
        for number, ((weight, bias), (kernel, _)) in enumerate(zip(self.tdnn, self.sizes, strict=True), start=1):
            _check(f"time-delay layer {number}", weight, bias, kernel * width)
            width = len(weight)
        _check("the vector's layer", *self.vector, 2 * width)
        _check("the layer of logits", *self.logits, len(self.vector[0]))

    @property
    def inputs(self) -> int:
        """K: width of the rows that the first layer takes."""
        weight, kernel = self.tdnn[0][0], self.sizes[0][0]
        if weight.ndim != 2 or weight.shape[1] % kernel:
            raise RdError(f"x-vector: a time-delay layer of shape {weight.shape} with a kernel of {kernel}")
        return weight.shape[1] // kernel

    @property
    def context(self) -> int:
        """Rows before a row that are needed for it."""
        return sum((kernel - 1) * dilation for kernel, dilation in self.sizes)

    def arrays(self) -> dict[str, np.ndarray]:
        """As the file in a bundle holds them."""
        layers = {f"tdnn_{i}": layer for i, layer in enumerate(self.tdnn)}
        layers |= {_VECTOR: self.vector, _LOGITS: self.logits}
        named = {f"{name}_{part}": a for name, one in layers.items() for part, a in zip(("weight", "bias"), one)}  # noqa: B905
        return {_SIZES: np.array(self.sizes, np.int64), **named}

    def frames(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n + context, K) -> what the last time-delay layer gives, (n, P)."""
        x = rows
        for (weight, bias), (kernel, dilation) in zip(self.tdnn, self.sizes, strict=True):
            count = len(x) - (kernel - 1) * dilation
            seen = np.concatenate([x[i * dilation : i * dilation + count] for i in range(kernel)], axis=1)
            x = np.maximum(seen @ weight.T + bias, 0)
        return x


def _check(what: str, weight: np.ndarray, bias: np.ndarray, inputs: int) -> None:
    if weight.ndim != 2 or weight.shape[1] != inputs or bias.shape != weight.shape[:1]:
        raise RdError(f"x-vector: {what} has shapes {weight.shape} and {bias.shape}, it takes {inputs} numbers")


def read_xvector(path: Path, output: TaskOutput) -> XVectorWeights:
    """The weights in a bundle's file. Raises RdError where an array is missing or does not fit ``output``."""
    weights = weights_of(read_npz(path), str(path))
    if weights.inputs != output.columns:
        raise RdError(f"{path}: takes rows of {weights.inputs} numbers, head {output.name!r} gives {output.columns}")
    return weights


def weights_of(arrays: Mapping[str, np.ndarray], where: str) -> XVectorWeights:
    """``XVectorWeights.arrays`` the other way. Raises RdError for one that is missing or no numbers."""

    def array(name: str, kinds: str) -> np.ndarray:
        if name not in arrays or arrays[name].dtype.kind not in kinds:
            raise RdError(f"{where}: array {name!r} is missing or no numbers", hint="export the bundle again")
        return arrays[name]

    def linear(name: str) -> Linear:
        return tuple(array(f"{name}_{part}", "f").astype(np.float32) for part in ("weight", "bias"))  # type: ignore[return-value]

    sizes = array(_SIZES, "iu")
    if sizes.ndim != 2 or sizes.shape[1] != 2 or not 1 <= len(sizes) <= MOST_LAYERS:
        raise RdError(f"{where}: {_SIZES} of shape {sizes.shape}, (layers, 2) is needed")
    pairs = tuple((int(kernel), int(dilation)) for kernel, dilation in sizes.tolist())
    return XVectorWeights(
        tuple(linear(f"tdnn_{i}") for i in range(len(pairs))), pairs, linear(_VECTOR), linear(_LOGITS)
    )


@dataclass(frozen=True, eq=False)
class RunningStatistics:
    """State: the rows that the next block needs, and the statistics of all blocks before it, in float64."""

    rows: np.ndarray  # (m, K), the oldest first
    frames: int  # of the stream so far
    count: int  # frames in the statistics
    mean: np.ndarray  # (P,)
    spread: np.ndarray  # (P,): sum of squared distances from the mean


class XVectorDecoder:
    """Decoder of ``xvector``: one event at the end, with the vector of the whole stream.

    ``vector(state)`` gives the vector of what was heard so far, at any time.
    """

    def __init__(self, output: TaskOutput, weights: XVectorWeights) -> None:
        self.output, self.weights = output, weights

    @property
    def least_frames(self) -> int:
        """Frames without which there is no vector: a standard deviation needs two rows of the last layer."""
        return self.weights.context + 2

    def start(self) -> RunningStatistics:
        size = len(self.weights.tdnn[-1][0])
        return RunningStatistics(np.zeros((0, self.output.columns), np.float32), 0, 0, np.zeros(size), np.zeros(size))

    def step(self, state: RunningStatistics, rows: np.ndarray) -> tuple[RunningStatistics, list[TaskEvent]]:
        """``rows`` (n, K)."""
        rows = check_rows(self.output, rows)
        held, frames = np.concatenate([state.rows, rows.astype(np.float32)]), state.frames + len(rows)
        needed = self.weights.context + BLOCK_FRAMES
        count, mean, spread = state.count, state.mean, state.spread
        while len(held) >= needed:
            block = self.weights.frames(np.ascontiguousarray(held[:needed]))
            count, mean, spread = _with(count, mean, spread, block)
            held = held[BLOCK_FRAMES:]
        return RunningStatistics(held.copy(), frames, count, mean, spread), []

    def finish(self, state: RunningStatistics) -> list[TaskEvent]:
        """The vector of the stream; nothing of one that is too short for it."""
        vector = self.vector(state)
        if vector is None:
            return []
        end = state.frames / self.output.rate_hz
        return [TaskEvent(self.output.name, 0.0, end, vector=tuple(vector.tolist()))]

    def vector(self, state: RunningStatistics) -> np.ndarray | None:
        """The vector (D,) of all frames so far, float32; None of fewer than ``least_frames``."""
        count, mean, spread = state.count, state.mean, state.spread
        left = len(state.rows) - self.weights.context
        if left > 0:
            block = np.zeros((self.weights.context + BLOCK_FRAMES, self.output.columns), np.float32)
            block[: len(state.rows)] = state.rows
            count, mean, spread = _with(count, mean, spread, self.weights.frames(block)[:left])
        if count < 2:
            return None
        pooled = np.concatenate([mean, np.sqrt(spread / (count - 1))])
        weight, bias = self.weights.vector
        return (weight.astype(np.float64) @ pooled + bias).astype(np.float32)

    def logits(self, vector: np.ndarray) -> np.ndarray:
        """What the classifier that the vectors were trained with makes of one."""
        weight, bias = self.weights.logits
        return (weight.astype(np.float64) @ vector + bias).astype(np.float32)


def _with(count: int, mean: np.ndarray, spread: np.ndarray, block: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Statistics together with those of ``block`` (n, P): Chan, Golub and LeVeque (1979)."""
    x = block.astype(np.float64)
    own, total = x.mean(0), count + len(x)
    apart = own - mean
    spread = spread + np.square(x - own).sum(0) + np.square(apart) * (count * len(x) / total)
    return total, mean + apart * (len(x) / total), spread
