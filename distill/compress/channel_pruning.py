"""Channels of the front end's convolutions removed (DPHuBERT, arXiv 2305.17651, prunes them with heads and units).

A channel can go exactly where nothing but the next convolution sees it: not the last convolution's (the norm over the
frame and the encoder see those), and not one with a norm over channels behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from reuse_distill.distill.compress.reshaping import plain_state, rebuilt
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, StudentConfig


def prunable_convolutions(config: StudentConfig) -> tuple[int, ...]:
    """Convolutions, from 1, whose channels can be removed."""
    if config.front_end not in ("conv", "mel", "whisper") or config.conv_norm == "every":
        return ()
    first = 2 if config.front_end == "conv" and config.conv_norm == "layer" else 1
    return tuple(range(first, len(config.conv_layers)))


def convolution_name(number: int) -> str:
    """Module of the 1-based convolution ``number``."""
    return f"feature_extractor.conv_layers.{number - 1}.0"


def remove_channels(student: Student, removed: Mapping[int, Sequence[int]]) -> Student:
    """A student without the channels ``removed`` (convolution from 1 -> channels from 0).

    Raises RdError for a convolution whose channels others see, a channel that there is not, and one left without any.
    """
    config, state = student.config, plain_state(student)
    possible, layers = prunable_convolutions(config), list(config.conv_layers)
    for number, channels in removed.items():
        if number not in possible:
            raise RdError(f"channels of convolution {number} cannot be removed", hint=f"possible: {list(possible)}")
        have, kernel, stride = layers[number - 1]
        if any(not 0 <= channel < have for channel in channels):
            raise RdError(f"convolution {number} has channels 0..{have - 1}, {max(channels)} is to be removed")
        kept = torch.tensor(sorted({*range(have)} - {*channels}), dtype=torch.long)
        if not len(kept):
            raise RdError(f"convolution {number} would be left without channels", hint="lower --ratio")
        block = convolution_name(number).removesuffix(".0")
        for name in [name for name in state if name.startswith(f"{block}.")]:  # kernel, bias, and the norm behind it
            state[name] = state[name].index_select(0, kept)
        after = f"{convolution_name(number + 1)}.weight"
        state[after] = state[after].index_select(1, kept)
        layers[number - 1] = (len(kept), kernel, stride)
    return rebuilt(student, state, conv_layers=tuple(layers))
