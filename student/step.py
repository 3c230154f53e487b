"""The streaming step: C new frames in, one finished chunk out, state in the open.

One step gets the samples of C front-end frames and finishes the chunk of encoder frames n*C - R … (n+1)*C - R - 1
(the R last frames wait for their look-ahead). It equals the offline forward with the same ``ChunkContext``.

Shape legend: B streams, C chunk frames, K taps of the positional convolution, R look-ahead, L cached frames,
H heads, D width of a head, E encoder width. All states are zeros at the start; zeros are the reset.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import OVERLAP_SAMPLES, samples_for
from reuse_distill.student.attention import score_bias
from reuse_distill.student.config import ChunkContext, StudentConfig
from reuse_distill.student.layer import CachedAttention, run_layers
from reuse_distill.student.model import Student
from torch import Tensor


@dataclass
class StreamState:
    """What a stream remembers between steps."""

    position: Tensor  # [B, K-1, E] last front-end frames; zeros where no frame was
    position_valid: Tensor  # [B, R] 1 where the last R front-end frames exist
    valid: Tensor  # [B, L] 1 where a cache slot holds a real frame
    keys: list[Tensor]  # [B, H, L, D] per computing layer
    values: list[Tensor]  # [B, H, L, D] per layer
    audio: Tensor  # [B, P] samples before the step's own, for a front end that sees them; P = 0 for convolutions


@dataclass
class StepRows:
    """What one step adds: the next audio and positional state whole, and C new rows for every cache."""

    position: Tensor  # [B, K-1, E]
    position_valid: Tensor  # [B, R]
    valid: Tensor  # [B, C]
    keys: list[Tensor]  # [B, H, C, D]
    values: list[Tensor]  # [B, H, C, D]
    audio: Tensor  # [B, P]


@dataclass
class StepOutput:
    """The finished chunk; rows whose frame does not exist (before the start, after the end) mean nothing."""

    layers: list[Tensor]  # [B, C, E] per layer
    projections: list[Tensor]  # [B, C, W] per head; empty without heads
    valid: Tensor  # [B, C] 1 where the frame exists


def check_streamable(config: StudentConfig) -> None:
    """Raises RdError for an encoder of which no step can be exact."""
    if config.conv_norm == "group":
        raise RdError(
            f"conv_norm is {config.conv_norm!r}: its statistics run over the whole utterance, so no step can be exact",
            hint="use a streaming student (preset arm-stream, tiny-stream), or --mode window",
        )
    if config.foreign or config.position != "conv":
        raise RdError(
            "this encoder cannot stream: it was trained to see the whole utterance, and no step equals that",
            hint="use --mode window",
        )
    if not config.streamable:
        raise RdError(
            f"this student sees {config.time_reduction} frames as one step (FitHuBERT): it has no chunked forward that "
            "a stream could equal",
            hint="use --mode window, or a student with time_reduction 1",
        )


def initial_state(config: StudentConfig, context: ChunkContext, *, batch: int, dtype: torch.dtype) -> StreamState:
    """The state of ``batch`` streams that have heard nothing.

    Raises RdError for a student that cannot stream exactly (norm statistics over all time, frames taken together).
    """
    check_streamable(config)
    caches = [(batch, shape.heads, context.left_frames, shape.head_dim) for shape in config.layer_shapes]
    computing = [n for n in range(1, config.layers + 1) if not config.reuses(n)]
    return StreamState(
        position=torch.zeros(batch, config.position_kernel - 1, config.width, dtype=dtype),
        position_valid=torch.zeros(batch, config.lookahead_frames, dtype=dtype),
        valid=torch.zeros(batch, context.left_frames, dtype=dtype),
        keys=[torch.zeros(caches[n - 1], dtype=dtype) for n in computing],
        values=[torch.zeros(cache, dtype=dtype) for cache in caches],
        audio=torch.zeros(batch, config.history_samples, dtype=dtype),
    )


def step(student: Student, samples: Tensor, fresh: Tensor, state: StreamState) -> tuple[StepOutput, StreamState]:
    """One step of B streams, in lockstep or not.

    samples: [B, 320 C + 80]; the first 80 are the last 80 of the step before. fresh: [B, C], 1 for each of the
    C front-end frames whose 400 samples all exist. Returns the chunk and the next state; changes nothing in place.
    """
    output, rows = step_rows(student, samples, fresh, state)
    left = state.valid.shape[1]
    return output, StreamState(
        position=rows.position,
        position_valid=rows.position_valid,
        valid=_shift(state.valid, rows.valid, left, dim=1),
        keys=[_shift(old, new, left, dim=2) for old, new in zip(state.keys, rows.keys, strict=True)],
        values=[_shift(old, new, left, dim=2) for old, new in zip(state.values, rows.values, strict=True)],
        audio=rows.audio,
    )


def step_rows(student: Student, samples: Tensor, fresh: Tensor, state: StreamState) -> tuple[StepOutput, StepRows]:
    """``step`` before the caches are moved on: hosts with ring buffers write the rows themselves."""
    chunk = fresh.shape[1]
    if samples.shape[-1] != samples_for(chunk):
        raise RdError(f"{samples.shape[-1]} samples for {chunk} frames, a step takes {samples_for(chunk)}")
    x, valid, position, position_valid = _encoder_input(student, samples, fresh, state)
    bias = score_bias(_join(state.valid, valid, dim=1), x.dtype)[:, None, None, :]  # [B, 1, 1, L + C]
    attend = CachedAttention(bias, state.keys, state.values)
    hidden = student.encoder.as_features(run_layers(student.encoder.layers, x, attend))
    output = StepOutput(hidden, student.projected(hidden), valid)
    audio = next_audio(samples, state.audio)
    return output, StepRows(position, position_valid, valid, attend.new_keys, attend.new_values, audio)


def _encoder_input(
    student: Student, samples: Tensor, fresh: Tensor, state: StreamState
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Front end and positional convolution: (x [B, C, E], its validity [B, C], next position, next validity)."""
    chunk, config = fresh.shape[1], student.config
    _, frames = student.frames(samples, history=state.audio)
    frames = frames * fresh[..., None]  # frames that do not exist are zeros, as the offline padding is
    heard = torch.cat([state.position, frames], dim=1)  # [B, K-1 + C, E]
    first = config.position_kernel - 1 - config.lookahead_frames  # where frame n*C - R stands in `heard`
    x = student.encoder.add_position(heard[:, first : first + chunk], heard.transpose(1, 2))
    exists = _join(state.position_valid, fresh, dim=1)  # [B, R + C]
    return x, exists[:, :chunk], heard[:, chunk:], exists[:, chunk:]


def next_audio(samples: Tensor, audio: Tensor) -> Tensor:
    """[B, P] samples before the next step's first one, from this step's [B, 320 C + 80] and those before it."""
    kept = audio.shape[1]
    heard = torch.cat([audio, samples[:, :-OVERLAP_SAMPLES]], dim=1) if kept else samples
    return heard[:, heard.shape[1] - kept :]


def _join(old: Tensor, new: Tensor, *, dim: int) -> Tensor:
    """Old rows before new ones; without old rows (R = 0, L = 0) no node in the exported graph."""
    return torch.cat([old, new], dim=dim) if old.shape[dim] else new


def _shift(cache: Tensor, rows: Tensor, left: int, *, dim: int) -> Tensor:
    joined = torch.cat([cache, rows], dim=dim)
    return joined.narrow(dim, joined.shape[dim] - left, left)
