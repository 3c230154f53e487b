"""Time reduction: batches equal single utterances, an odd last frame disturbs nobody, and the published arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import frames_for, samples_for
from reuse_distill.student import ChunkContext, Student, StudentConfig, preset
from reuse_distill.student.heads import TimeReduction, restored, seen


@pytest.fixture(scope="module")
def fit() -> Student:
    torch.manual_seed(0)
    student = Student(preset("tiny-fit", layers=2)).eval()
    with torch.no_grad():
        for parameter in student.parameters():  # heads and biases that matter
            parameter.add_(0.05 * torch.randn_like(parameter))
    return student


def noise(samples: int, seed: int) -> torch.Tensor:
    return 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("frames", [1, 2, 3, 10, 11])
def test_every_length_gives_its_frames(fit: Student, frames: int) -> None:
    output = fit(noise(samples_for(frames), frames))
    assert [x.shape for x in output.projections] == [(1, frames, 128)] * 2
    assert [x.shape for x in output.layers] == [(1, frames, 128)] * 2
    assert all(x.isfinite().all() for x in output.projections)


@pytest.mark.parametrize("length", [7_000, 7_300, 9_001, 720, 400])
def test_an_utterance_in_a_batch_is_the_utterance_alone(fit: Student, length: int) -> None:
    alone = noise(length, 1)
    batch = torch.cat([F.pad(alone, (0, 16_000 - length)), noise(16_000, 2)])
    frames = frames_for(length)
    together, single = fit(batch, torch.tensor([length, 16_000])), fit(alone)
    for a, b in zip(together.projections + together.layers, single.projections + single.layers, strict=True):
        assert torch.allclose(a[:1, :frames], b, atol=2e-5)


def test_the_frames_of_whole_steps_do_not_see_an_odd_last_one(fit: Student) -> None:
    """As the published code, which convolves the whole pairs and leaves the last frame out."""
    x = torch.randn(1, 11, 128)
    bias = fit._reduced_bias(torch.ones(1, 11), None)
    reduced = fit.encoder.reduction(x)
    published = F.conv1d(x.transpose(1, 2), fit.encoder.reduction.weight, fit.encoder.reduction.bias, stride=2)
    assert torch.allclose(reduced[:, :5], published.transpose(1, 2), atol=1e-6)
    after, _ = fit.encoder.layers[0](reduced, None, bias)
    expected, _ = fit.encoder.layers[0](reduced[:, :5], None, None)
    assert torch.allclose(after[:, :5], expected, atol=1e-5)
    head = fit.proj_head[0]
    up = F.conv_transpose1d(expected.transpose(1, 2), head.upsampler.weight, head.upsampler.bias, stride=2)
    assert torch.allclose(head(after, 11)[:, :10], head.lin_proj(up.transpose(1, 2)), atol=1e-5)


def test_against_the_sums_written_out() -> None:
    layer = TimeReduction(3, 2)
    x = np.random.default_rng(0).standard_normal((1, 5, 3)).astype(np.float32)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    whole = np.concatenate([x, x[:, -1:]], 1)[0]
    expected = [weight[:, :, 0] @ whole[2 * s] + weight[:, :, 1] @ whole[2 * s + 1] + bias for s in range(3)]
    assert np.allclose(layer(torch.from_numpy(x)).detach().numpy()[0], expected, atol=1e-5)
    assert restored(torch.arange(6.0).reshape(1, 3, 2), 2, 5)[0, :, 0].tolist() == [0, 0, 2, 2, 4]


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_which_steps_are_seen_and_what_stands_for_frames_that_do_not_exist(factor: int) -> None:
    """Every stretch of frames that begins with a step, against the rule in words."""
    layer, x = TimeReduction(1, factor), torch.arange(1.0, 12.0)[None, :, None]
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.zero_()
    for first in range(0, 11, factor):
        for last in range(first, 11):
            exists = torch.tensor([[float(first <= n <= last) for n in range(11)]])
            steps = [range(n, n + factor) for n in range(0, 11, factor)]
            whole = [float(first <= step[0] and step[-1] <= last) for step in steps]
            wanted = whole if any(whole) else [float(step[0] == first) for step in steps]
            assert seen(exists, factor).tolist() == [wanted]
            found = layer(x, exists)[0, :, 0]
            for step, value in zip(steps, found.tolist(), strict=True):
                if first <= step[0] <= last:
                    assert value == sum(1 + min(n, last) for n in step)


def test_what_a_reducing_student_cannot_do(fit: Student) -> None:
    with pytest.raises(RdError, match="reduces time and has no chunked forward"):
        fit(noise(4_000, 1), context=ChunkContext(4, 8))
    with pytest.raises(RdError, match="a context of 4 frames with time_reduction 2"):
        preset("tiny-fit", context=ChunkContext(4, 8))
    for factor in (0, 9):
        with pytest.raises(RdError, match=rf"time_reduction {factor} is outside 1\.\.8"):
            preset("tiny-fit", time_reduction=factor)
    assert not preset("tiny-fit", conv_norm="layer").streamable and preset("tiny-stream").streamable


def test_published_sizes() -> None:
    """22.49 M: the backbone, the last head and an upsampler that the published model has and does not use."""

    def parameters(config: StudentConfig, without: str) -> int:
        with torch.device("meta"):
            student = Student(config)
        return sum(p.numel() for name, p in student.named_parameters() if without not in name)

    config = preset("fithubert")
    upsampler = 2 * config.width**2 + config.width
    head = upsampler + config.width * 768 + 768
    assert parameters(config, "proj_head") + head + upsampler == 22_492_064
    assert parameters(preset("distilhubert"), "split_heads") == 23_491_200
