"""Masked statistics of a front end under autocast were summed in bfloat16: means over seconds lost their digits."""

from __future__ import annotations

import torch
from reuse_distill.student.front_ends.frontend import TimeNorm, masked_statistics


def noise() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, 4, 5000, generator=generator) + 3).bfloat16()


def test_sums_are_in_single_precision() -> None:
    x, valid = noise(), torch.arange(5000)[None] < torch.tensor([[5000], [3210]])
    mean, variance = masked_statistics(x, valid)
    expected, spread = masked_statistics(x.double(), valid)
    assert mean.dtype == variance.dtype == torch.float32
    torch.testing.assert_close(mean.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(variance.double(), spread, atol=1e-5, rtol=0)


def test_a_norm_with_lengths_is_the_norm_without() -> None:
    x, norm = noise(), TimeNorm(4).requires_grad_(False)
    plain = norm(x.float())
    masked = norm(x, torch.ones(2, 5000, dtype=torch.bool))
    torch.testing.assert_close(masked.float(), plain, atol=1e-3, rtol=0)
