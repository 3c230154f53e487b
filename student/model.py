"""The student: waveform -> frames -> layers. Parameter names and shapes are those of the public checkpoints.

Shape legend: B batch, T samples, F frames, C channels, H heads, W width of the projection heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_SAMPLES
from reuse_distill.student.attention import chunk_mask, padding_mask, score_bias
from reuse_distill.student.config import ChunkContext, ChunkSchedule, StudentConfig
from reuse_distill.student.front_ends.filter_bank import FilterBankFrontEnd
from reuse_distill.student.front_ends.frontend import FeatureExtractor, normalised
from reuse_distill.student.front_ends.log_mel import MelFrontEnd, WhisperFrontEnd
from reuse_distill.student.heads import Head, SplitHeads, TimeReduction, restored, seen
from reuse_distill.student.layer import TransformerLayer, run_layers, scale_gradient, scaled
from reuse_distill.student.position import (
    AbsolutePositions,
    ConvStack,
    NormedConv,
    RelativePositions,
    WeightNormConv,
    pad_context,
)
from torch import Tensor, nn


@dataclass
class StudentOutput:
    """What one forward gives; lists have one entry per layer (``projections``: per head)."""

    conv_features: Tensor  # [B, C, F] raw front end
    features: Tensor  # [B, F, C] after the norm, with masked frames replaced
    encoder_input: Tensor  # [B, F, C] what layer 1 sees
    padding: Tensor  # [B, F] true where a frame is padding
    layers: list[Tensor] = field(default_factory=list)  # [B, F, C] each; reduced steps stand for each of their frames
    projections: list[Tensor] = field(default_factory=list)  # [B, F, W] each; empty without heads
    maps: list[Tensor] = field(default_factory=list)  # [B, H, S, S] the map each layer took; only with_maps (S = F)


class TransformerEncoder(nn.Module):
    """Positional convolution, norm and the Transformer layers."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.norm_first, self.lookahead = config.norm_first, config.lookahead_frames
        self.kernel = config.position_kernel
        self.pos_conv = nn.Sequential(_position(config))
        self.layer_norm = nn.LayerNorm(config.width, eps=config.norm_eps) if config.final_norm else nn.Identity()
        self.relative = None
        if config.relative_buckets:
            self.relative = RelativePositions(config.relative_buckets, config.relative_distance, config.heads)
        self.dropout = nn.Dropout(config.dropout)
        self.reduction = TimeReduction(config.width, config.time_reduction) if config.time_reduction > 1 else None
        self.layers = nn.ModuleList(
            TransformerLayer(
                shape=shape,
                reuse_mode=config.reuse_mode,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                activation_dropout=config.activation_dropout,
                norm_first=config.norm_first,
                norm_eps=config.norm_eps,
                gated_positions=config.relative_buckets > 0,
            )
            for shape in config.layer_shapes
        )

    def positioned(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Frames of a whole utterance or window plus their position, [B, F, C] -> [B, F, C].

        ``valid`` [B, F] is 1 where a frame exists (None: everywhere); the others of ``x`` are zeros.
        """
        if isinstance(self.pos_conv[0], AbsolutePositions):
            return self._normed(self.pos_conv[0](x))
        columns = x.transpose(1, 2)
        if isinstance(self.pos_conv[0], (NormedConv, ConvStack)):
            mask = None if valid is None else valid[:, None]
            return self.joined(x, self.pos_conv[0](columns, mask, lookahead=self.lookahead).transpose(1, 2))
        return self.add_position(x, pad_context(columns, kernel=self.kernel, lookahead=self.lookahead))

    def add_position(self, x: Tensor, padded: Tensor) -> Tensor:
        """Norm of frames plus their positional convolution.

        ``x`` [B, F, C]; ``padded`` [B, C, F + K - 1] is the same with its context on both sides.
        """
        return self.joined(x, F.gelu(self.pos_conv(padded)).transpose(1, 2))

    def joined(self, x: Tensor, position: Tensor) -> Tensor:
        """Norm of frames plus what a positional convolution makes of them, both [B, F, C]."""
        return self._normed(x + position)

    def _normed(self, x: Tensor) -> Tensor:
        return self.dropout(x if self.norm_first else self.layer_norm(x))

    def run(
        self,
        x: Tensor,
        bias: Tensor | None,
        *,
        maps: list[Tensor] | None = None,
        trunk: Callable[[int, Tensor], Tensor] | None = None,
    ) -> list[Tensor]:
        """Output [B, S, C] of every layer for what layer 1 sees, ``x`` [B, S, C], before ``as_features``.

        ``bias`` is added to the scores. ``maps`` collects the map [B, H, S, S] that each layer took; ``trunk`` (index
        from 0, output) changes what a layer gives, as gradient scaling does.
        """
        positions = None if self.relative is None else self.relative(x)

        def call(index: int, layer: nn.Module, x: Tensor, source: Tensor | None) -> tuple[Tensor, Tensor]:
            x, computed = layer(x, source, bias, positions)
            if maps is not None:
                maps.append(computed)
            return x if trunk is None else trunk(index, x), computed

        return run_layers(self.layers, x, call)

    def as_features(self, hidden: list[Tensor]) -> list[Tensor]:
        """Outputs of the layers as features: the last one is normed where the layers norm first."""
        return [*hidden[:-1], self.layer_norm(hidden[-1])] if self.norm_first else hidden


def _front_end(config: StudentConfig) -> FeatureExtractor | MelFrontEnd | WhisperFrontEnd | FilterBankFrontEnd:
    if config.front_end == "fbank":
        return FilterBankFrontEnd(bands=config.mel_bands, stacked=config.conv_layers[0][1])
    if config.front_end == "mel":
        return MelFrontEnd(config.conv_layers)
    if config.front_end == "whisper":
        return WhisperFrontEnd(config.conv_layers, bands=config.mel_bands, frames=config.window_frames)
    return FeatureExtractor(config.conv_layers, norm=config.conv_norm, bias=config.conv_bias)


def _position(config: StudentConfig) -> nn.Module:
    if config.position == "absolute":
        return AbsolutePositions(config.window_frames, config.width)
    sizes = (config.width, config.position_kernel, config.position_groups)
    if config.position == "stack":
        return ConvStack(*sizes, config.position_layers)
    return NormedConv(*sizes) if config.position == "batch-norm" else WeightNormConv(*sizes, config.dropout)


class Student(nn.Module):
    """A student of the ARM, Mask, STaR, FitHuBERT or DistilHuBERT family; ``config`` says which."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.feature_extractor = _front_end(config)
        out_channels = config.conv_layers[-1][0]
        self.layer_norm = nn.LayerNorm(out_channels, eps=config.norm_eps) if config.frame_norm else nn.Identity()
        self.post_extract_proj = nn.Linear(out_channels, config.width) if config.projects_input else None
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.mask_emb = nn.Parameter(torch.rand(config.width)) if config.mask_embedding else None
        self.encoder = TransformerEncoder(config)
        self.proj_head, self.split_heads = None, None
        if config.head_kind == "split":
            assert config.head_width is not None  # noqa: S101  (StudentConfig has seen to it)
            self.split_heads = SplitHeads(config.width, config.head_width, len(config.head_targets))
        elif config.head_width is not None:
            sizes = {"width": config.width, "head_width": config.head_width}
            heads = (Head(**sizes, time_reduction=config.time_reduction) for _ in range(config.layers))
            self.proj_head = nn.ModuleList(heads)
        self.apply(_initialise)

    def frames(
        self,
        wave: Tensor,
        lengths: Tensor | None = None,
        *,
        frame_valid: Tensor | None = None,
        history: Tensor | None = None,
        grad_scale: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Front end: [B, T] -> (raw [B, C, F], normed and projected [B, F, C]); see FeatureExtractor.

        ``history`` [B, ``config.history_samples``] are the samples before ``wave``; None: digital silence.
        """
        if self.config.history_samples:
            before = wave.new_zeros(wave.shape[0], self.config.history_samples) if history is None else history
            wave = torch.cat([before, wave], dim=1)
        raw = self.feature_extractor(wave, lengths, frame_valid=frame_valid)
        raw = raw if grad_scale == 1 else scaled(raw, grad_scale)
        x = self.layer_norm(raw.transpose(1, 2))
        return raw, x if self.post_extract_proj is None else self.post_extract_proj(x)

    def forward(
        self,
        wave: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        context: ChunkContext | ChunkSchedule | tuple[int, int] | None = None,
        with_maps: bool = False,
        layer_grad_scale: bool = False,
        front_end_grad_scale: float = 1.0,
    ) -> StudentOutput:
        """Features of whole utterances.

        wave: [B, T] float, 16 kHz, in -1..1. lengths: [B] valid samples (None: all); padding is never attended to
        and never enters a statistic. mask: [B, F] true where the learned mask embedding replaces the frame.
        context: attention in chunks, as the streaming step computes it, of one size or of several (None: full); (C, L)
        will do. layer_grad_scale, front_end_grad_scale: see ``student.layer``. Raises RdError when no frame fits,
        when a mask is given without a mask embedding, or a context to a student that reduces time.
        """
        if wave.shape[-1] < RECEPTIVE_FIELD_SAMPLES:
            raise RdError(f"{wave.shape[-1]} samples give no frame, the first one needs {RECEPTIVE_FIELD_SAMPLES}")
        if self.config.normalise_input is not None:
            wave = normalised(wave, lengths, epsilon=self.config.normalise_input)
        raw, x = self.frames(wave, lengths, grad_scale=front_end_grad_scale)
        batch, frames, _ = x.shape
        context = ChunkContext(*context) if isinstance(context, tuple) else context
        if lengths is None:
            padding = torch.zeros(batch, frames, dtype=torch.bool, device=x.device)
        else:
            padding = padding_mask(lengths, frames, self.config.hop_samples)
            x = x.masked_fill(padding[..., None], 0.0)
            mask = None if mask is None else mask & ~padding  # padding stays zero: the positional convolution sees it
        x = self._masked(self.input_dropout(x), mask)
        exists = None if lengths is None else (~padding).to(x.dtype)
        encoder_input = self.encoder.positioned(x, exists)
        output = StudentOutput(raw, x, encoder_input, padding)
        if self.encoder.reduction is not None:
            bias = self._reduced_bias(x.new_ones(1, frames) if exists is None else exists, context)
        else:
            bias = self._bias(frames, padding if lengths is not None else None, context, x)
        self._run_layers(output, bias, exists, with_maps=with_maps, layer_grad_scale=layer_grad_scale)
        return output

    def _masked(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return x
        if self.mask_emb is None:
            raise RdError("this student has no mask embedding, but a mask was given", hint="set mask_embedding: true")
        return torch.where(mask[..., None], self.mask_emb.to(x.dtype), x)

    def _bias(
        self, frames: int, padding: Tensor | None, context: ChunkContext | ChunkSchedule | None, like: Tensor
    ) -> Tensor | None:
        """Additive mask of the scores, [1, 1, F, F] and/or [B, 1, 1, F]; None where everything may be seen."""
        allowed: Tensor | None = None
        if context is not None:
            allowed = chunk_mask(frames, context, lookahead=self.config.lookahead_frames, device=like.device)[
                None, None
            ]
        if padding is not None:
            keys = ~padding[:, None, None, :]
            allowed = keys if allowed is None else allowed & keys
        return None if allowed is None else score_bias(allowed, like.dtype)

    def _reduced_bias(self, exists: Tensor, context: ChunkContext | ChunkSchedule | None) -> Tensor:
        """Additive mask of the scores between steps, [B or 1, 1, 1, S], of the frames that exist [B or 1, F]."""
        if context is not None:
            raise RdError("this student reduces time and has no chunked forward", hint="leave the context out")
        return score_bias(seen(exists, self.config.time_reduction)[:, None, None], exists.dtype)

    def _run_layers(
        self,
        output: StudentOutput,
        bias: Tensor | None,
        exists: Tensor | None,
        *,
        with_maps: bool,
        layer_grad_scale: bool,
    ) -> None:
        x, reduction, count = output.encoder_input, self.encoder.reduction, len(self.encoder.layers)
        frames = x.shape[1]
        if reduction is not None:
            x = reduction(x, exists)  # [B, S, C]
        to_heads: list[Tensor] = []

        def trunk(index: int, x: Tensor) -> Tensor:
            x, to_head = scale_gradient(x, index=index, layers=count)
            to_heads.append(to_head)
            return x

        maps = output.maps if with_maps else None
        hidden = self.encoder.run(x, bias, maps=maps, trunk=trunk if layer_grad_scale else None)
        given = self.encoder.as_features(hidden)
        output.layers = [x if reduction is None else restored(x, reduction.factor, frames) for x in given]
        output.projections = self.projected(self.encoder.as_features(to_heads) if to_heads else given, frames)

    def projected(self, hidden: Sequence[Tensor], frames: int | None = None) -> list[Tensor]:
        """What the projection heads make of the features [B, S, C] of every layer: [B, F, W] each; none without."""
        if self.split_heads is not None:
            return self.split_heads(hidden[-1])
        if self.proj_head is None:
            return []
        return [head(x, frames) for head, x in zip(self.proj_head, hidden, strict=True)]


def _initialise(module: nn.Module) -> None:
    """BERT's initialisation of the linear layers, as the family uses."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
