"""Frozen features of one utterance, from whatever is compared: (T,) samples -> (N layers, F frames, C channels).

An evaluation compares the student first, then log-mel, an untrained student and the teacher. Which student layer
resembles which teacher layer is linear centred kernel alignment (Kornblith et al., 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from reuse_distill.distill.data.reading import read_utterance
from reuse_distill.distill.data.utterances import find_utterances
from reuse_distill.distill.teachers import Teacher, open_teacher
from reuse_distill.report.training_plots import attention_maps, similarity_matrix
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, frames_for
from reuse_distill.student import Student, load_checkpoint
from torch import Tensor

CPU = torch.device("cpu")
MELS = 80
PIECE_S = 30.0  # of longer recordings each such piece is heard by itself: attention grows with the square of the length
FFT = 512
PARTS = 4  # of the time, whose means stand for an utterance
DRAWN, DRAWN_S = 8, 10  # utterances of a picture, seconds of each


@dataclass(frozen=True)
class Features:
    """A named source of features; ``parameters`` is its size, 0 for log-mel; ``device``: where it wants samples."""

    name: str
    parameters: int
    extract: Callable[[Tensor], Tensor]
    device: torch.device = CPU

    def __call__(self, samples: NDArray[np.float32]) -> Tensor:
        """(T,) -> (N, F, C) float32 on the CPU, without gradient; beyond 30 s piece by piece."""
        with torch.no_grad():
            heard = [self.extract(torch.from_numpy(piece).to(self.device)).float().cpu() for piece in pieces(samples)]
        return heard[0] if len(heard) == 1 else torch.cat(heard, dim=1)


def pieces(samples: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """(T,) -> pieces of one length, at most 30 s, whose frames side by side are those of the whole."""
    frames = frames_for(len(samples))
    count = math.ceil(frames * HOP_SAMPLES / (PIECE_S * SAMPLE_RATE_HZ))
    if count <= 1:
        return [samples]
    bounds = [HOP_SAMPLES * round(number * frames / count) for number in range(count + 1)]
    return [samples[start : end + RECEPTIVE_FIELD_SAMPLES - HOP_SAMPLES] for start, end in pairwise(bounds)]


def of_student(name: str, student: Student, *, heads: bool | None = None, device: torch.device = CPU) -> Features:
    """All layers of a student: its projection heads where it has them (``heads`` None), else the hidden layers."""
    model = student.eval().to(device)
    use_heads = model.proj_head is not None if heads is None else heads

    def extract(samples: Tensor) -> Tensor:
        output = model(samples[None], context=model.config.context)
        return torch.cat(output.projections if use_heads else output.layers)

    return Features(name, sum(p.numel() for p in model.parameters()), extract, device)


def of_teacher(name: str, teacher: Teacher, *, device: torch.device = CPU) -> Features:
    """All layers of a teacher."""
    placed = teacher.to(device)
    return Features(name, teacher.info.parameters, lambda samples: placed.hidden_states(samples[None])[:, 0], device)


def of_bundle(name: str, encoder: Encoder) -> Features:
    """All layers that a bundle's artifact gives, through the runtime."""

    def extract(samples: Tensor) -> Tensor:
        features = encoder.extract(samples.numpy(), SAMPLE_RATE_HZ)
        return torch.from_numpy(features if features.ndim == 3 else features[None])

    return Features(name, 0, extract)


def of_log_mel() -> Features:
    """80 log-mel energies per frame, on the frames of the students (25 ms every 20 ms)."""
    bank = mel_filters()
    window = torch.hann_window(RECEPTIVE_FIELD_SAMPLES)

    def extract(samples: Tensor) -> Tensor:
        frames = samples.unfold(0, RECEPTIVE_FIELD_SAMPLES, HOP_SAMPLES)  # (F, 400)
        power = torch.fft.rfft(frames * window, FFT).abs().square()  # (F, 257)
        return (power @ bank + 1e-6).log()[None]  # (1, F, 80)

    return Features("log-mel", 0, extract)


def mel_filters(mels: int = MELS) -> Tensor:
    """Triangular filters on the mel scale (2595 log10(1 + f/700)), 20 Hz to 8 kHz: (bins, mels)."""

    def to_mel(hz: float) -> float:
        return 2595 * math.log10(1 + hz / 700)

    edges_mel = torch.linspace(to_mel(20), to_mel(SAMPLE_RATE_HZ / 2), mels + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)  # Hz
    bins = torch.linspace(0, SAMPLE_RATE_HZ / 2, FFT // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


def pooled(features: Tensor, parts: int = PARTS) -> Tensor:
    """Means over ``parts`` equal parts of the time, side by side: (N, F, C) -> (N, parts * C)."""
    frames = features.shape[1]
    bounds = [round(i * frames / parts) for i in range(parts + 1)]
    means = [features[:, min(a, frames - 1) : max(b, a + 1, 1)].mean(1) for a, b in pairwise(bounds)]
    return torch.cat(means, dim=1)


def sources_of(
    checkpoint: Path,
    *,
    also: Sequence[Path] = (),
    teacher: Path | None = None,
    features: str = "auto",
    seed: int = 0,
    device: torch.device = CPU,
) -> list[Features]:
    """The student, other students, log-mel, the student's shape with its initial weights, and the teacher."""
    how: dict[str, Any] = {"heads": None if features == "auto" else features == "heads", "device": device}
    student = load_checkpoint(checkpoint)
    sources = [of_student("student", student, **how)]
    sources += [of_student(_name(path), load_checkpoint(path), **how) for path in also]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = Student(student.config)
    sources += [of_log_mel(), of_student("untrained", untrained, **how)]
    if teacher is not None:
        sources.append(of_teacher("teacher", open_teacher(teacher), device=device))
    return sources


def draw(checkpoint: Path, teacher: Path | None, data: Path, folder: Path) -> list[Path]:
    """SVG files from the first seconds of some utterances of ``data``: attention maps, CKA where there is a teacher."""
    student = load_checkpoint(checkpoint)
    config = student.config
    names, waves = _first_seconds(data)
    with torch.no_grad():
        outputs = [student(wave[None], with_maps=True, context=config.context) for wave in waves]
    reuses = [config.reuses(number) for number in range(1, config.layers + 1)]
    maps = [one[0].mean(0).numpy() for one in outputs[0].maps]
    title, seconds = f"attention of {_name(checkpoint)}, mean of heads: {names[0]}", len(waves[0]) / SAMPLE_RATE_HZ
    paths = [attention_maps(maps, reuses, folder / "attention.svg", seconds=seconds, title=title)]
    if teacher is not None:
        theirs = of_teacher("teacher", open_teacher(teacher))
        matrix = cka_matrix([torch.cat(o.layers) for o in outputs], [theirs(wave.numpy()) for wave in waves])
        paths.append(similarity_matrix(matrix, folder / "cka.svg", title=f"linear CKA, {len(waves)} utterances"))
    return paths


def _first_seconds(data: Path) -> tuple[list[str], list[Tensor]]:
    """Names and waves of the first utterances that can be read; attention maps grow with the square of the length."""
    names, waves = [], []
    for utterance in find_utterances(data).utterances:
        try:
            samples = read_utterance(utterance)
        except RdError:  # the probes have named it
            continue
        names.append(utterance.path.name)
        waves.append(torch.from_numpy(samples[: DRAWN_S * SAMPLE_RATE_HZ]))
        if len(waves) == DRAWN:
            break
    return names, waves


def _name(path: Path) -> str:
    """The run's name for RUN/student, the folder's name otherwise."""
    return path.resolve().parent.name if path.name == "student" else path.name


def linear_cka(left: Tensor, right: Tensor) -> float:
    """||Y^T X||^2 / (||X^T X|| ||Y^T Y||) of centred (frames, C) and (frames, D).

    1 for features that are equal up to rotation and scale, 0 for unrelated ones.
    """
    x, y = (t.double() - t.double().mean(0) for t in (left, right))
    cross = (y.T @ x).square().sum()
    own = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(cross / own) if own > 0 else float("nan")


def cka_matrix(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[list[float]]:
    """CKA of every student layer (rows) with every teacher layer (columns), over the frames of all utterances.

    ``student`` and ``teacher``: one (N, F, C) per utterance, the same utterances in the same order.
    """
    ours, theirs = torch.cat(list(student), dim=1), torch.cat(list(teacher), dim=1)
    return [[linear_cka(a, b) for b in theirs] for a in ours]
