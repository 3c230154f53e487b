"""Gradient scaling: between layers (``layer_grad_scale`` of the ARMHuBERT training), and of the front end."""

from __future__ import annotations

import torch
from torch import Tensor


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
