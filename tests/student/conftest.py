"""Small students whose every parameter counts, and a host that streams a wave through the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reuse_distill.runtime.geometry import frames_for, samples_for
from reuse_distill.student import ChunkContext, Student, StudentConfig, StudentOutput, preset
from reuse_distill.student.config import conv_stack
from reuse_distill.student.step import StepOutput, initial_state, step

SMALL: dict[str, Any] = {
    "width": 16,
    "ffn_width": 24,
    "heads": 4,
    "layers": 4,
    "conv_layers": conv_stack(6, 5, 16),
    "position_groups": 4,
    "position_kernel": 16,
    "reuse_layers": (2, 4),
    "head_width": 12,
}


def small_config(name: str = "tiny-stream", **changes: Any) -> StudentConfig:
    """A preset's family at a small size; ``changes`` on top."""
    ahead = {} if name == "tiny-stream" else {"lookahead_frames": 7}
    return preset(name, **{**SMALL, **ahead, **changes})


def randomised(config: StudentConfig, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Student:
    """Weights far from their initial values: sharp maps, gains and biases that matter."""
    student = Student(config).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, value in student.named_parameters():
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if value.ndim == 1:
            value.add_(0.3 * noise)
        else:
            value.copy_(noise * value[0].numel() ** -0.5 * (2 if "q_proj" in name or "k_proj" in name else 1))
    return student.to(dtype)


def noise(samples: int, *, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.1 * torch.randn(samples, generator=generator, dtype=torch.float64)).to(dtype)


def step_inputs(wave: torch.Tensor, number: int, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples [320 C + 80] and fresh [C] of step ``number`` (from 0) of ``wave`` [T], zero padded past the end."""
    samples = torch.zeros(samples_for(chunk), dtype=wave.dtype)
    piece = wave[320 * chunk * number : 320 * chunk * number + len(samples)]
    samples[: len(piece)] = piece
    frame = torch.arange(number * chunk, (number + 1) * chunk)
    return samples, (frame < frames_for(len(wave))).to(wave.dtype)


def steps_of(frames: int, chunk: int, lookahead: int) -> int:
    """Steps until the last frame has come out."""
    return -(-(frames + lookahead) // chunk)


def streamed(student: Student, wave: torch.Tensor, context: ChunkContext) -> StudentOutput:
    """Layers and projections [1, F, ...] of ``wave`` [T], one step at a time."""
    state = initial_state(student.config, context, batch=1, dtype=wave.dtype)
    outputs: list[StepOutput] = []
    frames, ahead = frames_for(len(wave)), student.config.lookahead_frames
    for number in range(steps_of(frames, context.chunk_frames, ahead)):
        samples, fresh = step_inputs(wave, number, context.chunk_frames)
        output, state = step(student, samples[None], fresh[None], state)
        outputs.append(output)
    valid = torch.cat([output.valid for output in outputs], dim=1)[0]
    assert valid.tolist() == [0.0] * ahead + [1.0] * frames + [0.0] * (len(valid) - ahead - frames)

    def joined(parts: list[list[torch.Tensor]]) -> list[torch.Tensor]:
        return [torch.cat(chunks, dim=1)[:, ahead : ahead + frames] for chunks in zip(*parts, strict=True)]

    empty = torch.empty(0)
    layers, projections = joined([o.layers for o in outputs]), joined([o.projections for o in outputs])
    return StudentOutput(empty, empty, empty, empty, layers, projections)


def largest_gap(ours: StudentOutput, theirs: StudentOutput) -> float:
    """Largest difference over all layers and projections."""
    assert len(ours.layers) == len(theirs.layers)
    assert len(ours.projections) == len(theirs.projections)
    pairs = zip([*ours.layers, *ours.projections], [*theirs.layers, *theirs.projections], strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.fixture(name="small_config", scope="session")
def _small_config() -> Callable[..., StudentConfig]:
    return small_config


@pytest.fixture(name="randomised", scope="session")
def _randomised() -> Callable[..., Student]:
    return randomised


@pytest.fixture(name="noise", scope="session")
def _noise() -> Callable[..., torch.Tensor]:
    return noise


@pytest.fixture(name="streamed", scope="session")
def _streamed() -> Callable[..., StudentOutput]:
    return streamed


@pytest.fixture(name="step_inputs", scope="session")
def _step_inputs() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    return step_inputs


@pytest.fixture(name="steps_of", scope="session")
def _steps_of() -> Callable[..., int]:
    return steps_of


@pytest.fixture(name="largest_gap", scope="session")
def _largest_gap() -> Callable[..., float]:
    return largest_gap
