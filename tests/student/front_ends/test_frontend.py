"""The convolution stack: statistics over valid samples only, frozen statistics, per-frame norm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reuse_distill.runtime.geometry import frames_for, samples_for
from reuse_distill.student.config import conv_stack
from reuse_distill.student.front_ends.frontend import (
    FeatureExtractor,
    FrameNorm,
    FrozenTimeNorm,
    TimeNorm,
    masked_statistics,
)

LAYERS = conv_stack(6, 5, 8)


def extractor(norm: str) -> FeatureExtractor:
    torch.manual_seed(0)
    front = FeatureExtractor(LAYERS, norm=norm).double().requires_grad_(False)
    front.conv_layers[0][2].weight.uniform_(0.5, 2)
    front.conv_layers[0][2].bias.uniform_(-1, 1)
    return front


def time_norm(channels: int) -> TimeNorm:
    norm = TimeNorm(channels).double().requires_grad_(False)
    norm.weight.copy_(torch.linspace(0.5, 2, channels))
    norm.bias.copy_(torch.linspace(-1, 1, channels))
    return norm


@settings(max_examples=30, deadline=None)
@given(st.integers(400, 4000))
def test_frames_are_counted_as_the_geometry_says(samples: int) -> None:
    front = FeatureExtractor(LAYERS, norm="layer").requires_grad_(False)
    assert front(torch.zeros(1, samples)).shape == (1, 8, frames_for(samples))


def test_only_the_first_layer_has_a_norm_and_none_has_a_bias() -> None:
    names = [name for name, _ in extractor("group").named_parameters()]
    assert names[:3] == ["conv_layers.0.0.weight", "conv_layers.0.2.weight", "conv_layers.0.2.bias"]
    assert names[3:] == [f"conv_layers.{layer}.0.weight" for layer in range(1, 9)]


def test_masked_statistics_are_those_of_the_valid_part() -> None:
    x = torch.randn(2, 3, 20, dtype=torch.float64)
    mean, variance = masked_statistics(x, torch.arange(20)[None] < torch.tensor([[20], [7]]))
    for row, steps in enumerate((20, 7)):
        torch.testing.assert_close(mean[row, :, 0], x[row, :, :steps].mean(-1))
        torch.testing.assert_close(variance[row, :, 0], x[row, :, :steps].var(-1, correction=0))


@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("inf")])
def test_masked_statistics_ignore_whatever_stands_in_padding(garbage: float) -> None:
    x = torch.randn(1, 3, 20, dtype=torch.float64)
    spoilt = x.clone()
    spoilt[..., 12:] = garbage
    valid = torch.arange(20)[None] < 12
    for ours, clean in zip(masked_statistics(spoilt, valid), masked_statistics(x, valid), strict=True):
        assert torch.equal(ours, clean)


def test_an_empty_row_has_finite_statistics() -> None:
    mean, variance = masked_statistics(torch.randn(1, 3, 20), torch.zeros(1, 20, dtype=torch.bool))
    assert mean.abs().max() == variance.abs().max() == 0


def test_time_norm_is_group_norm_with_a_group_per_channel() -> None:
    x, norm = torch.randn(2, 6, 50, dtype=torch.float64), time_norm(6)
    expected = torch.nn.functional.group_norm(x, 6, norm.weight, norm.bias)
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm(x, torch.ones(2, 50, dtype=torch.bool)), expected)


def test_time_norm_sees_the_whole_utterance_and_frame_norm_one_step() -> None:
    x = torch.randn(1, 6, 50, dtype=torch.float64)
    other = x.clone()
    other[..., 40] += 5
    frame_norm = FrameNorm(6).double()
    assert not torch.equal(time_norm(6)(x)[..., 0], time_norm(6)(other)[..., 0])
    assert torch.equal(frame_norm(x)[..., :40], frame_norm(other)[..., :40])
    torch.testing.assert_close(frame_norm(x).mean(1), torch.zeros(1, 50, dtype=torch.float64))


def test_frozen_norm_with_an_utterances_own_statistics_is_time_norm() -> None:
    x, norm = torch.randn(1, 6, 50, dtype=torch.float64) * 3 + 1, time_norm(6)
    mean, variance = masked_statistics(x, torch.ones(1, 50, dtype=torch.bool))
    frozen = FrozenTimeNorm(norm, mean[0, :, 0], variance[0, :, 0])
    torch.testing.assert_close(frozen(x), norm(x), atol=1e-12, rtol=0)
    assert torch.equal(frozen(x)[..., 10:20], frozen(x[..., 10:20])), "a window gives what the utterance gives"
    assert not list(frozen.parameters())


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_padded_row_is_the_row_alone(norm: str) -> None:
    front, lengths = extractor(norm), [2000, 1333, 400]
    waves = [torch.randn(samples, dtype=torch.float64) for samples in lengths]
    batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True, padding_value=0.7)
    together = front(batch, torch.tensor(lengths))
    for row, wave in enumerate(waves):
        alone = front(wave[None])
        torch.testing.assert_close(together[row : row + 1, :, : alone.shape[-1]], alone, atol=1e-12, rtol=0)


def test_without_lengths_padding_enters_the_statistics() -> None:
    """What the public code does in a batch; ours only without lengths."""
    front, wave = extractor("group"), torch.randn(1, 1000, dtype=torch.float64)
    padded = torch.nn.functional.pad(wave, (0, 1000))
    alone = front(wave)
    assert float((front(padded)[..., : alone.shape[-1]] - alone).abs().max()) > 0.01


def test_pieces_that_share_80_samples_are_the_whole() -> None:
    """320 C + 80 samples give C frames: a push carries 80 samples and no convolution state."""
    front, wave = extractor("layer"), torch.randn(1, samples_for(12), dtype=torch.float64)
    pieces = [front(wave[:, 320 * start : 320 * start + samples_for(4)]) for start in (0, 4, 8)]
    torch.testing.assert_close(torch.cat(pieces, dim=-1), front(wave), atol=1e-12, rtol=0)
