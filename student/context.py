"""Who may see whom: padding and chunked attention as boolean masks."""

from __future__ import annotations

import torch
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES
from reuse_distill.student.config import ChunkContext, ChunkSchedule, StudentConfig
from torch import Tensor


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
    sizes = [context.chunk_frames] if isinstance(context, ChunkContext) else list(context.chunks)
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
