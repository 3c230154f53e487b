"""The positional convolution: weight norm, alignment with the public one, look-ahead."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reuse_distill.student.position import WeightNormConv, pad_context


def conv(kernel: int, channels: int = 8, groups: int = 2) -> WeightNormConv:
    torch.manual_seed(0)
    module = WeightNormConv(channels, kernel, groups, dropout=0.1).double().requires_grad_(False)
    module.weight_g.mul_(torch.rand(1, 1, kernel, dtype=torch.float64) + 0.5)
    module.bias.normal_()
    return module


def test_names_and_shapes_of_the_public_checkpoints() -> None:
    module = WeightNormConv(480, 128, 16, dropout=0.1)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "weight_v": (480, 30, 128),
        "weight_g": (1, 1, 128),
        "bias": (480,),
    }


def test_weight_norm_is_torchs_with_one_gain_per_tap() -> None:
    module = conv(6)
    expected = torch._weight_norm(module.weight_v, module.weight_g, 2)
    torch.testing.assert_close(module.weight, expected, atol=1e-14, rtol=0)
    norms = module.weight.square().sum((0, 1)).sqrt()
    torch.testing.assert_close(norms, module.weight_g[0, 0])


def test_gain_starts_as_the_norm() -> None:
    module = WeightNormConv(8, 6, 2, dropout=0.0)
    torch.testing.assert_close(module.weight, module.weight_v)


@pytest.mark.parametrize("kernel", [128, 16, 7])
def test_alignment_of_the_public_convolution(kernel: int) -> None:
    """Padding K // 2 on both sides, one frame dropped at the end where K is even: R = (K - 1) // 2."""
    module, x = conv(kernel), torch.randn(2, 8, 150, dtype=torch.float64)
    public = F.conv1d(x, module.weight, module.bias, padding=kernel // 2, groups=2)[..., : x.shape[-1]]
    ours = module(pad_context(x, kernel=kernel, lookahead=(kernel - 1) // 2))
    torch.testing.assert_close(ours, public, atol=1e-12, rtol=0)


@pytest.mark.parametrize("lookahead", [0, 1, 4, 14, 15])
def test_frame_t_sees_from_k_minus_1_minus_r_before_to_r_after(lookahead: int) -> None:
    module, x, frame = conv(16), torch.randn(1, 8, 60, dtype=torch.float64), 30

    def change(at: int) -> float:
        other = x.clone()
        other[..., at] += 1
        both = [module(pad_context(v, kernel=16, lookahead=lookahead))[..., frame] for v in (x, other)]
        return float((both[0] - both[1]).abs().max())

    assert change(frame + lookahead) > 0
    assert change(frame + lookahead + 1) == 0
    assert change(frame - 15 + lookahead) > 0
    assert change(frame - 16 + lookahead) == 0


@pytest.mark.parametrize("lookahead", [0, 2, 7])
def test_the_whole_chunked_student_looks_no_further(lookahead: int, small_config, randomised, noise) -> None:
    """With chunks the future ends R front-end frames after the chunk, whatever the number of layers."""
    from reuse_distill.student import ChunkContext

    student = randomised(small_config(lookahead_frames=lookahead))
    context, wave = ChunkContext(4, 6), noise(320 * 40 + 80)
    last = 4 * 5 - lookahead - 1  # last frame of a chunk
    first_unseen = 320 * (last + lookahead + 1) + 80  # frame last + R ends before this sample
    other = wave.clone()
    other[first_unseen:] = noise(len(wave) - first_unseen, seed=9)
    pair = [student(x[None], context=context) for x in (wave, other)]
    for ours, theirs in zip(pair[0].layers, pair[1].layers, strict=True):
        assert torch.equal(ours[0, : last + 1], theirs[0, : last + 1])
        assert not torch.equal(ours[0, last + 1], theirs[0, last + 1])


def test_output_length_is_input_length() -> None:
    for lookahead in (0, 5, 15):
        assert pad_context(torch.zeros(1, 8, 3), kernel=16, lookahead=lookahead).shape == (1, 8, 18)
        assert conv(16)(torch.zeros(1, 8, 18, dtype=torch.float64)).shape == (1, 8, 3)
