"""Attention whose map is computed once and reused (ARMHuBERT section 3.1), and who may see whom.

    computing layer:  P = softmax(Q K^T / sqrt(D)),   y = P V
    reusing layer:    y = P' V  with the map P' of the last computing layer; no query, no key

``shared`` reuse takes the map itself (P' = P, the method as published); ``renormalised`` takes softmax(P), which is
what the released checkpoints were trained with. Padding and chunked attention are boolean masks.

Shapes: B batch, H heads, F queries, S keys, D width of a head.
"""

from __future__ import annotations

import math

import torch
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES
from reuse_distill.student.config import ChunkContext, ChunkSchedule, StudentConfig
from reuse_distill.student.layer_shape import FactoredLinear, LayerShape, linear
from torch import Tensor, nn

MASKED = -1e4  # finite: -inf and finfo.min overflow in fp16 and upset phone NPUs


def frames_for_lengths(lengths: Tensor, hop_samples: int = HOP_SAMPLES) -> Tensor:
    """Valid frames [B] of utterances of ``lengths`` [B] samples (conv length rule): max(0, (T-400)//320 + 1)."""
    frames = torch.div(lengths - RECEPTIVE_FIELD_SAMPLES, hop_samples, rounding_mode="floor") + 1
    return frames.clamp(min=0)


def padding_mask(lengths: Tensor, frames: int, hop_samples: int = HOP_SAMPLES) -> Tensor:
    """[B, F] true where a frame is padding."""
    valid = frames_for_lengths(lengths, hop_samples)
    return torch.arange(frames, device=lengths.device)[None, :] >= valid[:, None]


def chunk_mask(
    frames: int, context: ChunkContext | ChunkSchedule, *, lookahead: int, device: torch.device | None = None
) -> Tensor:
    """[F, F] true where query t may see key s: s in its own chunk, or among the L frames before that chunk.

    The grid has phase R: chunk n holds frames n*C - R … (n+1)*C - R - 1, so that a step which has just received C new
    front-end frames can finish exactly one chunk. With a schedule the chunks differ in size; the first begins at -R.
    """
    start, chunk = _chunk_of_frames(frames + lookahead, context)
    start, chunk = start[lookahead:] - lookahead, chunk[lookahead:]
    start, chunk = start.to(device), chunk.to(device)
    key = torch.arange(frames, device=device)[None, :]
    return (key >= start[:, None] - context.left_frames) & (key < (start + chunk)[:, None])


def _chunk_of_frames(count: int, context: ChunkContext | ChunkSchedule) -> tuple[Tensor, Tensor]:
    """(first place of its chunk, size of its chunk) for each of ``count`` places of a grid that begins at 0."""
    if isinstance(context, ChunkContext):  # in numbers alone: a list would be another graph for every length
        place = torch.arange(count)
        return place - place % context.chunk_frames, torch.full_like(place, context.chunk_frames)
    sizes = list(context.chunks)
    missing = count - sum(sizes)
    sizes += [sizes[-1]] * max(0, -(-missing // sizes[-1]))
    chunk = torch.tensor(sizes)
    start = torch.cumsum(chunk, 0) - chunk
    return start.repeat_interleave(chunk)[:count], chunk.repeat_interleave(chunk)[:count]


def past_frames(config: StudentConfig, context: ChunkContext) -> int:
    """How many frames before frame t can have any influence on it, at most, in a chunked forward.

    Within its chunk t sees back to the chunk's start (C - 1). Each layer reaches L frames before the start of a
    chunk, and a frame there has heard, one layer further down, what its own chunk reaches: ceil(L / C) whole chunks
    for each layer but the last one counted. The positional convolution adds K - 1 - R frames.
    """
    chunk, left = context.chunk_frames, context.left_frames
    below = (config.layers - 1) * -(-left // chunk) * chunk
    return chunk - 1 + below + left + config.position_kernel - 1 - config.lookahead_frames


def score_bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key may be seen, -1e4 where not. ``allowed`` bool or 0/1, any shape."""
    return (1.0 - allowed.to(dtype)) * MASKED


def compute_map(scores: Tensor, bias: Tensor | None) -> Tensor:
    """softmax over the keys of ``scores`` [B, H, F, S], already scaled."""
    return torch.softmax(scores if bias is None else scores + bias, dim=-1)


def reuse_map(source: Tensor, bias: Tensor | None, *, mode: str) -> Tensor:
    """The map a reusing layer weights its values with, from the computing layer's map [B, H, F, S]."""
    return source if mode == "shared" else compute_map(source, bias)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, F, H*D] -> [B, H, F, D]."""
    batch, frames, width = x.shape
    return x.reshape(batch, frames, heads, width // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, H, F, D] -> [B, F, H*D]."""
    batch, heads, frames, depth = x.shape
    return x.transpose(1, 2).reshape(batch, frames, heads * depth)


class Attention(nn.Module):
    """Projections of one layer; query and key exist only where the layer computes its map."""

    def __init__(self, shape: LayerShape, *, reuse_mode: str, dropout: float) -> None:
        super().__init__()
        self.heads, self.reuse, self.reuse_mode = shape.heads, not shape.computes, reuse_mode
        self.scale = 1 / math.sqrt(shape.head_dim)

        def part(name: str) -> nn.Linear | FactoredLinear:
            return linear(*shape.size(name), shape.rank(name))

        if shape.computes:
            self.k_proj = part("k_proj")
            self.q_proj = part("q_proj")
        self.v_proj = part("v_proj")
        self.out_proj = part("out_proj")
        self.dropout = nn.Dropout(dropout)

    def queries(self, x: Tensor) -> Tensor:
        """Scaled queries [B, H, F, D]."""
        return split_heads(self.scaled_queries(x), self.heads)

    def scaled_queries(self, x: Tensor) -> Tensor:
        """[.., F, C] -> [.., F, H*D]; the scale is 1 where it is folded into the projection."""
        queries = self.q_proj(x)
        return queries if self.scale == 1 else queries * self.scale

    def keys(self, x: Tensor) -> Tensor:
        return split_heads(self.k_proj(x), self.heads)

    def values(self, x: Tensor) -> Tensor:
        return split_heads(self.v_proj(x), self.heads)

    def forward(self, x: Tensor, source: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attend within ``x`` [B, F, C].

        ``source`` is the map [B, H, F, F] of the last computing layer (None for the first layer), ``bias``
        broadcasts to it. Returns (output [B, F, C], the last computed map).
        """
        if self.reuse:
            if source is None:
                raise ValueError("a reusing layer needs the map of a layer before it")
            weights, computed = reuse_map(source, bias, mode=self.reuse_mode), source
        else:
            weights = computed = compute_map(self.queries(x) @ self.keys(x).transpose(-1, -2), bias)
        context = self.dropout(weights) @ self.values(x)  # [B, H, F, D]
        return self.out_proj(join_heads(context)), computed
