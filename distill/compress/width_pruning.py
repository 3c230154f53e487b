"""Widths made smaller: units of feed-forward blocks, and channels of the front end's convolutions.

Units go by their weights (arXiv 2211.09949, row pruning). A channel (DPHuBERT, arXiv 2305.17651, prunes them with heads
and units) can go exactly where nothing but the next convolution sees it: not the last convolution's (the norm over the
frame and the encoder see those), and not one with a norm over channels behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from reuse_distill.distill.compress.reshaping import keep_inputs, keep_outputs, part_name, part_of, plain_state, rebuilt
from reuse_distill.runtime.errors import RdError
from reuse_distill.student import Student, StudentConfig
from reuse_distill.student.layer_shape import last_factor, whole_weight


def row_scores(student: Student) -> dict[int, list[float]]:
    """Layer -> of each unit, the sum of |fc1 row| + |fc1 bias| + |fc2 column|."""
    scores = {}
    for layer in range(1, student.config.layers + 1):
        inner, outer = part_of(student, layer, "fc1"), part_of(student, layer, "fc2")
        with torch.no_grad():
            into = whole_weight(inner).abs().sum(1) + last_factor(inner).bias.abs()
            total = into + whole_weight(outer).abs().sum(0)
        scores[layer] = total.double().tolist()
    return scores


def remove_rows(student: Student, removed: Mapping[int, Sequence[int]]) -> Student:
    """A student without the units ``removed`` (layer from 1 -> units from 0) of its feed-forward blocks.

    Raises RdError for a unit that there is not and for a layer left without units.
    """
    shapes, state = student.config.layer_shapes, plain_state(student)
    widths = [shape.ffn_width for shape in shapes]
    for layer, units in removed.items():
        if not 1 <= layer <= len(shapes):
            raise RdError(f"there is no layer {layer}, the student has {len(shapes)}")
        have, gone = widths[layer - 1], set(units)
        if any(not 0 <= unit < have for unit in gone):
            raise RdError(f"layer {layer} has units 0..{have - 1}, {max(gone)} is to be removed")
        kept = [unit for unit in range(have) if unit not in gone]
        keep_outputs(state, part_name(layer, "fc1"), kept)
        keep_inputs(state, part_name(layer, "fc2"), kept)
        widths[layer - 1] = len(kept)
    same = all(width == student.config.ffn_width for width in widths)
    return rebuilt(student, state, layer_ffn_widths=() if same else tuple(widths))


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
