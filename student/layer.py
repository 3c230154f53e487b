"""One Transformer layer, and the loop over layers, written once.

A layer is attention (computed or reused), then the feed-forward block; norms after them or before. In the loop every
layer gets the output of the layer before it and the map of the last layer that computed one; a reusing layer takes that
map, a computing one replaces it. How a layer attends is what callers plug in: within its input
(``TransformerEncoder.run``), or to cached frames as well (``CachedAttention``). Gradients can be scaled between layers
(``layer_grad_scale`` of the ARMHuBERT training), and of the front end.

Shape legend: B streams, S steps (frames) of the input, L cached frames, H heads, D width of a head, C layer width.
The axis B is missing in the forms that hold one stream as rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from reuse_distill.student.attention import Attention, compute_map, join_heads, reuse_map, split_heads
from reuse_distill.student.layer_shape import LayerShape, linear
from reuse_distill.student.position import PositionGate
from torch import Tensor, nn

# (index from 0, layer, its input [.., S, C], last computed map or None) -> (its output [.., S, C], last computed map)
LayerCall = Callable[[int, Any, Tensor, "Tensor | None"], "tuple[Tensor, Tensor]"]


class TransformerLayer(nn.Module):
    """y = LN(x + attention(x)), z = LN(y + fc2(gelu(fc1(y)))).

    ``norm_first``: y = x + attention(LN(x)), z = y + fc2(gelu(fc1(LN(y)))).
    """

    def __init__(
        self,
        *,
        shape: LayerShape,
        reuse_mode: str,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
        norm_first: bool = False,
        norm_eps: float = 1e-5,
        gated_positions: bool = False,
    ) -> None:
        super().__init__()
        width, gated = shape.width, gated_positions and shape.computes
        self.self_attn = Attention(shape, reuse_mode=reuse_mode, dropout=attention_dropout)
        self.norm_first = norm_first
        self.gate = PositionGate(shape.heads, shape.head_dim) if gated else None
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=norm_eps)
        self.fc1 = linear(*shape.size("fc1"), shape.rank("fc1"))
        self.fc2 = linear(*shape.size("fc2"), shape.rank("fc2"))
        self.final_layer_norm = nn.LayerNorm(width, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.activation_dropout = nn.Dropout(activation_dropout)

    def forward(
        self, x: Tensor, source: Tensor | None, bias: Tensor | None, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """[B, F, C] -> ([B, F, C], last computed map [B, H, F, F]).

        ``positions`` [1, H, F, F]: relative position bias, of which each query takes its gate's share.
        """
        inner = self.before_attention(x)
        attended, computed = self.self_attn(inner, source, self.gated(inner, bias, positions))
        return self.after_attention(x, attended), computed

    def before_attention(self, x: Tensor) -> Tensor:
        """What attention sees of ``x``."""
        return self.self_attn_layer_norm(x) if self.norm_first else x

    def gated(self, inner: Tensor, bias: Tensor | None, positions: Tensor | None) -> Tensor | None:
        """What is added to the scores: the mask ``bias`` and the gated ``positions``."""
        if self.gate is None or positions is None:
            return bias
        gated = self.gate(inner) * positions
        return gated if bias is None else gated + bias

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual, norm and feed-forward block; shared by the offline forward and the streaming step."""
        x = x + self.dropout(attended)
        x = x if self.norm_first else self.self_attn_layer_norm(x)
        inner = self.final_layer_norm(x) if self.norm_first else x
        inner = self.activation_dropout(F.gelu(self.fc1(inner)))
        x = x + self.dropout(self.fc2(inner))
        return x if self.norm_first else self.final_layer_norm(x)


def run_layers(layers: Iterable[Any], x: Tensor, call: LayerCall) -> list[Tensor]:
    """Output [.., S, C] of every layer for ``x`` [.., S, C], what layer 1 sees."""
    source: Tensor | None = None
    outputs = []
    for index, layer in enumerate(layers):
        x, source = call(index, layer, x, source)
        outputs.append(x)
    return outputs


@dataclass(frozen=True)
class HeadForm:
    """How heads are split off and joined, and how their matrices are multiplied."""

    split: Callable[[Tensor, int], Tensor]  # ([.., S, H*D], H) -> [.., H, S, D]
    join: Callable[[Tensor], Tensor]  # [.., H, S, D] -> [.., S, H*D]
    product: Callable[[Tensor, Tensor], Tensor]


BATCHED = HeadForm(split_heads, join_heads, torch.matmul)


class CachedAttention:
    """A ``LayerCall`` whose queries see L cached frames before the S of the input.

    ``keys`` of the computing layers and ``values`` of all layers are caches [.., H, L, D]; None or L = 0: nothing is
    cached. ``bias`` broadcasts to the scores [.., H, S, L + S]. New rows are collected in ``new_keys`` and
    ``new_values`` [.., H, S, D]. ``added`` (layer, what its attention sees) stands in for ``bias`` where that depends
    on the layer, as gated positions do. Cached and new rows are weighted apart, never joined into one tensor.
    """

    def __init__(
        self,
        bias: Tensor | None,
        keys: Sequence[Tensor] | None = None,
        values: Sequence[Tensor] | None = None,
        *,
        form: HeadForm = BATCHED,
        added: Callable[[Any, Tensor], Tensor | None] | None = None,
    ) -> None:
        self.form = form
        self.added = added or (lambda _layer, _inner: bias)
        self.keys, self.values = None if keys is None else iter(keys), values
        self.new_keys: list[Tensor] = []
        self.new_values: list[Tensor] = []

    def __call__(self, index: int, layer: Any, x: Tensor, source: Tensor | None) -> tuple[Tensor, Tensor]:
        attention, inner = layer.self_attn, layer.before_attention(x)
        bias = self.added(layer, inner)
        if attention.reuse:
            assert source is not None  # the first layer always computes  # noqa: S101
            weights = reuse_map(source, bias, mode=attention.reuse_mode)
        else:
            weights = source = compute_map(self._scores(attention, inner), bias)
        values = self.form.split(attention.v_proj(inner), attention.heads)
        self.new_values.append(values)
        context = self._weighted(weights, values, None if self.values is None else self.values[index])
        return layer.after_attention(x, attention.out_proj(self.form.join(context))), source

    def _scores(self, attention: Any, inner: Tensor) -> Tensor:
        """Scaled scores [.., H, S, L + S] of a computing layer."""
        queries = self.form.split(attention.scaled_queries(inner), attention.heads)
        keys = self.form.split(attention.k_proj(inner), attention.heads)
        self.new_keys.append(keys)
        scores = self.form.product(queries, keys.transpose(-1, -2))
        cache = None if self.keys is None else next(self.keys)
        if cache is None or cache.shape[-2] == 0:
            return scores
        return torch.cat([self.form.product(queries, cache.transpose(-1, -2)), scores], dim=-1)

    def _weighted(self, weights: Tensor, values: Tensor, cache: Tensor | None) -> Tensor:
        """[.., H, S, D] from the map and the values, cached ones first."""
        left = 0 if cache is None else cache.shape[-2]
        if cache is None or left == 0:
            return self.form.product(weights, values)
        fresh = self.form.product(weights[..., left:], values)
        return self.form.product(weights[..., :left], cache) + fresh


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def scaled(x: Tensor, factor: float) -> Tensor:
    """``x`` itself, with ``factor`` times the gradient (``feature_grad_mult`` of wav2vec 2.0 and DistilHuBERT)."""
    return _Scale.apply(x, factor)


def scale_gradient(x: Tensor, *, index: int, layers: int) -> tuple[Tensor, Tensor]:
    """(trunk, input of the head) of 0-based layer ``index``: the same values, scaled gradients.

    With m = (L - i) / (L - i + 1) the trunk's gradient is scaled by m and the head's share by m (1 - m), so that every
    layer above weighs alike in what reaches a layer below.
    """
    keep = (layers - index) / (layers - index + 1)
    trunk = _Scale.apply(x, keep)
    return trunk, _Scale.apply(trunk, 1 - keep)
