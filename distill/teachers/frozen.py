"""A teacher made of the four parts that the whole wav2vec 2.0 family shares.

Convolutions -> norm and projection -> (mask embedding) -> Transformer. The parts are transformers modules; we run
them one after the other, so that the frozen front end is computed once for the masked and the unmasked pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from reuse_distill.distill.teachers.protocol import FrameRule, Teacher, TeacherInfo, TeacherPass, frame_padding
from reuse_distill.runtime.errors import RdError
from reuse_distill.student.front_ends.frontend import normalised
from torch import Tensor, nn


class FrozenTeacher(Teacher):
    """A ``Teacher``: a transformers encoder of the wav2vec 2.0 family.

    frame_rule: which frames of a padded row count (``protocol.frame_padding``). statistics: ``valid`` takes the group
    norm of the front end over each row's own samples, so a row in a batch equals the row alone; ``public`` takes it
    over the padding too, as the public code does. normalise: zero mean and unit variance per utterance, with this
    added to the variance; None: audio as it is.
    """

    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        info: TeacherInfo,
        *,
        frame_rule: FrameRule = "conv",
        statistics: str = "valid",
        normalise: float | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.info = info
        self.frame_rule = frame_rule
        self.statistics = statistics
        self.normalise = normalise
        # Pre-trained with masks: it has the embedding that stands for masked frames.
        self.can_mask = getattr(model, "masked_spec_embed", None) is not None

    @torch.no_grad()
    def run(
        self, wave: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None, *, maps: bool = False
    ) -> TeacherPass:
        frames, padding = self._frames(wave, lengths)
        hidden = frames if mask is None else self._masked(frames, mask)
        return self._encode(hidden, padding, has_padding=lengths is not None, maps=maps)

    @torch.no_grad()
    def both(self, wave: Tensor, lengths: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Teacher``; the convolutions run once, the layers on 2 B rows."""
        frames, padding = self._frames(wave, lengths)
        twice = torch.cat([frames, self._masked(frames, mask)])
        layers = self._encode(twice, padding.repeat(2, 1), has_padding=lengths is not None, maps=False).layers
        plain, masked = layers.chunk(2, dim=1)
        return plain, masked

    def _frames(self, wave: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Projected front-end frames (B, F, C) and padding (B, F)."""
        dtype = next(self.model.parameters()).dtype
        if self.normalise is not None:
            wave = normalised(wave, lengths, epsilon=self.normalise)
        conv = self._convolve(wave.to(dtype), lengths).transpose(1, 2)  # (B, F, channels)
        projected = self.model.feature_projection(conv)
        frames = projected[0] if isinstance(projected, tuple) else projected
        if lengths is None:
            return frames, torch.zeros(frames.shape[:2], dtype=torch.bool, device=frames.device)
        return frames, frame_padding(lengths, wave.shape[1], frames.shape[1], self.frame_rule)

    def _convolve(self, wave: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, T) -> (B, channels, F)."""
        layers: Any = self.model.feature_extractor.conv_layers
        grouped = isinstance(getattr(layers[0], "layer_norm", None), nn.GroupNorm)
        if lengths is None or self.statistics == "public" or not grouped:
            return self.model.feature_extractor(wave)
        hidden = _first_layer(layers[0], wave[:, None, :], lengths)
        for layer in layers[1:]:
            hidden = layer(hidden)
        return hidden

    def _masked(self, frames: Tensor, mask: Tensor) -> Tensor:
        embedding = getattr(self.model, "masked_spec_embed", None)
        if embedding is None:
            raise RdError(
                f"teacher {self.info.name} has no mask embedding, so it cannot see a masked input",
                hint="use a recipe without masking (loss: hint), or a teacher pre-trained with masks",
            )
        return torch.where(mask[..., None], embedding.to(frames.dtype), frames)

    def _encode(self, frames: Tensor, padding: Tensor, *, has_padding: bool, maps: bool) -> TeacherPass:
        encoder: Any = self.model.encoder
        attention_mask = ~padding if has_padding else None
        with _recorded(encoder.layers) as record, _recorded_maps(encoder.layers, record=maps) as seen:
            encoder(frames.clone(), attention_mask=attention_mask, **({"output_attentions": True} if maps else {}))
        return TeacherPass(
            layers=torch.stack(record["out"]),
            entry=record["in"][0],
            padding=padding,
            maps=torch.stack(seen) if maps else None,
        )


def _first_layer(layer: Any, wave: Tensor, lengths: Tensor) -> Tensor:
    """Convolution, group norm over each row's own steps, activation. (B, 1, T) -> (B, channels, T')."""
    hidden = layer.conv(wave)
    kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
    steps = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    valid = (torch.arange(hidden.shape[-1], device=wave.device)[None, :] < steps[:, None])[:, None, :]
    precise = hidden.float()
    count = valid.sum(-1, keepdim=True).clamp(min=1)
    mean = (precise * valid).sum(-1, keepdim=True) / count
    variance = ((precise - mean).square() * valid).sum(-1, keepdim=True) / count
    normed = (precise - mean) * torch.rsqrt(variance + layer.layer_norm.eps)
    weight, bias = layer.layer_norm.weight[:, None], layer.layer_norm.bias[:, None]
    return layer.activation(normed.to(hidden.dtype) * weight + bias)


@contextmanager
def _recorded(layers: nn.ModuleList) -> Iterator[dict[str, list[Tensor]]]:
    """The raw output of every layer, and the input of the first, while the encoder runs."""
    record: dict[str, list[Tensor]] = {"in": [], "out": []}

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record["in"].append(args[0] if args else kwargs["hidden_states"])

    def leave(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        record["out"].append(output[0] if isinstance(output, tuple) else output)

    handles = [layers[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [layer.register_forward_hook(leave) for layer in layers]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _recorded_maps(layers: nn.ModuleList, *, record: bool) -> Iterator[list[Tensor]]:
    """The head-averaged attention map (B, F, F) of every layer, where ``wanted``; needs eager attention."""
    seen: list[Tensor] = []

    def leave(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, tuple) or output[1] is None:
            raise RdError("this teacher gives no attention maps", hint="open it with attention='eager'")
        maps = output[1]  # (B, H, F, F)
        seen.append(maps.mean(1))

    handles = [layer.attention.register_forward_hook(leave) for layer in layers] if record else []
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
