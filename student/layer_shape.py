"""The shape of one Transformer layer: how many heads, how wide the feed-forward block, which matrices are factored.

Compression removes heads and feed-forward units layer by layer and splits matrices into two of low rank, W x + b =
U (V x) + b, so layers of one student need not be alike. The width of the encoder and the width D of a head are the same
in all of them.

Shapes: C inputs, N outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reuse_distill.runtime.errors import RdError
from torch import Tensor, nn

# The matrices of a layer, in the order in which ``StudentConfig.layer_ranks`` names their ranks.
PARTS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
ATTENTION_PARTS = PARTS[:4]
MAP_PARTS = ("q_proj", "k_proj")  # only where the layer computes its own attention map
_LARGEST = 100_000


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one layer; ``ranks`` has one entry per part, 0 where the matrix is whole."""

    width: int  # C: of the encoder
    head_dim: int  # D
    heads: int
    ffn_width: int
    computes: bool  # its own map; a reusing layer has no query and no key
    ranks: tuple[int, ...] = (0,) * len(PARTS)

    @property
    def parts(self) -> tuple[str, ...]:
        """The matrices that this layer has."""
        return PARTS if self.computes else tuple(part for part in PARTS if part not in MAP_PARTS)

    @property
    def attention_width(self) -> int:
        """H D: what the heads give together."""
        return self.heads * self.head_dim

    def size(self, part: str) -> tuple[int, int]:
        """(inputs, outputs) of the matrix called ``part``."""
        if part == "fc1":
            return self.width, self.ffn_width
        if part == "fc2":
            return self.ffn_width, self.width
        return (self.attention_width, self.width) if part == "out_proj" else (self.width, self.attention_width)

    def rank(self, part: str) -> int:
        """Rank of the factors of ``part``; 0 where it is one matrix."""
        return self.ranks[PARTS.index(part)]

    def weights(self, *parts: str) -> int:
        """Values of the matrices called ``parts`` (all where none is named), without biases: MACs per frame too."""
        total = 0
        for part in parts or self.parts:
            if part in self.parts:
                inputs, outputs = self.size(part)
                total += self.rank(part) * (inputs + outputs) or inputs * outputs
        return total


def check_layer_shapes(shapes: Sequence[LayerShape], *, most_heads: int) -> None:
    """Raises RdError for a layer without heads or units, with more heads than there were, or a rank above full."""
    for number, shape in enumerate(shapes, start=1):
        if not 1 <= shape.heads <= most_heads:
            raise RdError(f"layer {number} has {shape.heads} heads, 1..{most_heads} are possible")
        if not 1 <= shape.ffn_width <= _LARGEST:
            raise RdError(f"layer {number} has a feed-forward width of {shape.ffn_width}, 1..{_LARGEST} are possible")
        if len(shape.ranks) != len(PARTS):
            raise RdError(
                f"layer {number} has {len(shape.ranks)} ranks", hint=f"one each for {', '.join(PARTS)}; 0: not factored"
            )
        for part in PARTS:
            most = min(shape.size(part)) if part in shape.parts else 0
            if not 0 <= shape.rank(part) <= most:
                raise RdError(
                    f"layer {number}: rank {shape.rank(part)} of {part} is outside 0..{most}",
                    hint="the full rank is the smaller side of the matrix; 0 leaves it whole"
                    if most
                    else "a reusing layer has no query and no key",
                )


def check_per_layer(name: str, values: Sequence[object], layers: int) -> None:
    """Raises RdError where a per-layer setting is neither empty nor one value per layer."""
    if values and len(values) != layers:
        raise RdError(f"{name} has {len(values)} entries, the student has {layers} layers", hint="one per layer")


class FactoredLinear(nn.Module):
    """``down`` [R, C] without bias, then ``up`` [N, R] with the layer's bias."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., N]."""
        return self.up(self.down(x))


def linear(inputs: int, outputs: int, rank: int = 0) -> nn.Linear | FactoredLinear:
    """A linear layer, factored where ``rank`` is not 0."""
    return FactoredLinear(inputs, outputs, rank) if rank else nn.Linear(inputs, outputs)


def last_factor(module: nn.Linear | FactoredLinear) -> nn.Linear:
    """The linear layer that gives the outputs: scaling its weight and bias scales the whole."""
    return module.up if isinstance(module, FactoredLinear) else module


def whole_weight(module: nn.Linear | FactoredLinear) -> Tensor:
    """The matrix [N, C], factors multiplied."""
    return module.up.weight @ module.down.weight if isinstance(module, FactoredLinear) else module.weight
