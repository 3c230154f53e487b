"""A keyword spotter over frozen frames: a small network that tells the parts of every keyword from everything else.

Each keyword is cut into equal parts; where a recording says it is found by its level at first, and by the network
itself (Viterbi through silence, parts, silence) after every round. What the network takes for a keyword in other speech
is shown to it more often in the next round. Decoding is ``runtime.tasks.spotting``, which also chooses thresholds.

Shapes: F frames, D inputs, K keywords, S parts, classes 1 + K S.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, frames_for
from reuse_distill.runtime.tasks import TaskOutput
from reuse_distill.runtime.tasks.spotting import Spotter
from torch import Tensor, nn

SPEECH_DB = 30.0  # below the loudest frame: where a recording's word begins and ends at first
ROUNDS = 4  # of alignment, training and false alarms
STEPS_PER_ROUND = 600
BATCH = 2048
RATE, DECAY = 2e-3, 1e-3
DROPOUT = 0.2
KEYWORD_SHARE, ALARM_SHARE = 0.4, 0.3  # of a batch; the rest is drawn from all other speech
ALARM_SCORE = 0.3  # other speech that scores more than this is shown more often
STATISTICS_FRAMES = 50_000
ALARM_REACH = 25  # frames around such a place
LEAST_THRESHOLD, MARGIN = 0.35, 0.03


@dataclass(frozen=True)
class SpotSettings:
    """Of the head; frames are 20 ms."""

    parts: int = 4
    inner_width: int = 64
    smooth_frames: int = 5
    search_frames: int = 75
    refractory_s: float = 0.8


@dataclass(frozen=True)
class SpotNetwork:
    """The trained network: mean and scale (D,) of its input, then two linear layers with GELU between."""

    mean: Tensor
    scale: Tensor
    inner: nn.Linear
    outer: nn.Linear

    def probabilities(self, frames: Tensor) -> NDArray[np.float32]:
        """(F, D) -> (F, 1 + K S)."""
        with torch.no_grad():
            hidden = nn.functional.gelu(self.inner((frames.float() - self.mean) * self.scale))
            rows: NDArray[np.float32] = self.outer(hidden).softmax(-1).numpy()
        return rows

    def folded(self) -> dict[str, Tensor]:
        """The weights of a ``TaskHead``: normalisation multiplied into the first layer."""
        weight = self.inner.weight * self.scale
        return {
            "inner.weight": weight,
            "inner.bias": self.inner.bias - weight @ self.mean,
            "outer.weight": self.outer.weight,
            "outer.bias": self.outer.bias,
        }


def spot_output(name: str, keywords: Sequence[str], settings: SpotSettings, thresholds: Sequence[float]) -> TaskOutput:
    """The contract of the head."""
    return TaskOutput(
        name,
        "spot",
        len(keywords),
        tuple(keywords),
        parts=settings.parts,
        thresholds=tuple(thresholds),
        smooth_frames=settings.smooth_frames,
        search_frames=settings.search_frames,
        refractory_s=settings.refractory_s,
    )


def word_of(samples: NDArray[np.float32]) -> tuple[int, int]:
    """First frame of the word in a recording (T,), and the frame after its last: where it is loud.

    Short sounds apart from the loudest stretch (clicks) are not part of it.
    """
    count = frames_for(len(samples))
    starts = HOP_SAMPLES * np.arange(count)[:, None]
    power = np.square(samples[starts + np.arange(RECEPTIVE_FIELD_SAMPLES)], dtype=np.float64).mean(1)
    level = 10 * np.log10(np.maximum(np.convolve(power, np.ones(5) / 5, mode="same"), 1e-12))
    quiet = np.percentile(level, 10)
    loud = np.flatnonzero(level > max(level.max() - SPEECH_DB, (level.max() + quiet) / 2))
    return (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, count)


def fit_spot(
    positives: Sequence[Tensor],
    labels: Sequence[int],
    words: Sequence[tuple[int, int]],
    others: Sequence[Tensor],
    *,
    keywords: int,
    settings: SpotSettings,
    seed: int,
    report: Callable[[str], None] = print,
) -> SpotNetwork:
    """Train on recordings of keywords (F, D) each with its label and word, and on other speech (F, D) each.

    Raises RdError where a keyword has no recording, or a word is shorter than its parts.
    """
    missing = sorted(set(range(keywords)) - set(labels))
    if missing or not others:
        raise RdError(f"keyword {missing[0]} has no recording to train on" if missing else "there is no other speech")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    spoken, other = torch.cat(list(positives)), torch.cat(list(others))
    some = [frames[:: max(1, len(frames) // STATISTICS_FRAMES)] for frames in (spoken, other)]
    mean, scale = _statistics(torch.cat(some))
    inner = nn.Linear(spoken.shape[1], settings.inner_width)
    outer = nn.Linear(settings.inner_width, 1 + keywords * settings.parts)
    network = SpotNetwork(mean, scale, inner, outer)
    targets = [_even(len(f), w, k, settings.parts) for f, w, k in zip(positives, words, labels, strict=True)]
    alarms = torch.zeros(0, dtype=torch.long)
    for number in range(1, ROUNDS + 1):
        loss = _train(network, spoken, torch.cat(targets), other, alarms, generator)
        targets = [
            realigned(network.probabilities(f), k, settings.parts) for f, k in zip(positives, labels, strict=True)
        ]
        alarms = false_alarms(network, others, keywords, settings)
        report(f"round {number} of {ROUNDS}: loss {loss:.4f}, {len(alarms)} frames of other speech near a keyword")
    return network


def _statistics(frames: Tensor) -> tuple[Tensor, Tensor]:
    frames = frames.float()
    return frames.mean(0), 1 / (frames.std(0) + 1e-3 * frames.std() + 1e-8)


def _even(frames: int, word: tuple[int, int], label: int, parts: int) -> Tensor:
    """Classes (F,): the word in ``parts`` equal parts, 0 elsewhere."""
    first, last = word
    if last - first < parts:
        middle = (first + last) // 2
        first = max(0, min(middle - parts // 2, frames - parts))
        last = first + parts
    target = torch.zeros(frames, dtype=torch.long)
    bounds = np.linspace(first, last, parts + 1).round().astype(int)
    for part in range(parts):
        target[bounds[part] : bounds[part + 1]] = 1 + label * parts + part
    return target


def realigned(probabilities: NDArray[np.float32], label: int, parts: int) -> Tensor:
    """Classes (F,) of the best path through everything else, the parts in order, everything else."""
    columns = [0, *(1 + label * parts + part for part in range(parts)), 0]
    emitted = np.log(np.maximum(probabilities[:, columns].astype(np.float64), 1e-8))  # (F, S + 2)
    frames, states = emitted.shape
    if frames < states:
        return _even(frames, (0, frames), label, min(parts, frames))
    score = np.full(states, -np.inf)
    score[:2] = emitted[0, :2]  # a recording may begin with the word
    back = np.zeros((frames, states), bool)
    for t in range(1, frames):
        advanced = np.concatenate([[-np.inf], score[:-1]])
        back[t] = advanced > score
        score = np.maximum(advanced, score) + emitted[t]
    state = states - 1 if score[-1] >= score[-2] else states - 2
    path = np.zeros(frames, np.int64)
    for t in range(frames - 1, -1, -1):
        path[t] = columns[state]
        state -= int(back[t, state])
    return torch.from_numpy(path)


def false_alarms(network: SpotNetwork, others: Sequence[Tensor], keywords: int, settings: SpotSettings) -> Tensor:
    """Indices of frames, over all ``others`` joined, around places that score like a keyword."""
    spotter = Spotter(spot_output("alarms", [str(k) for k in range(keywords)], settings, [1.0] * keywords))
    alarms, at = [], 0
    for frames in others:
        scores = spotter.scores(network.probabilities(frames)).max(1, initial=0.0)
        near = np.convolve(scores > ALARM_SCORE, np.ones(2 * ALARM_REACH + 1), mode="same")[: len(frames)] > 0
        alarms.append(at + np.flatnonzero(near))
        at += len(frames)
    return torch.from_numpy(np.concatenate(alarms))


def _train(
    network: SpotNetwork, spoken: Tensor, target: Tensor, other: Tensor, alarms: Tensor, generator: torch.Generator
) -> float:
    """One round of steps; the mean loss of its last tenth."""
    layers = [network.inner, network.outer]
    optimiser = torch.optim.AdamW([p for layer in layers for p in layer.parameters()], lr=RATE, weight_decay=DECAY)
    counts = [int(BATCH * KEYWORD_SHARE), int(BATCH * ALARM_SHARE) if len(alarms) else 0]
    counts.append(BATCH - sum(counts))
    losses: list[float] = []
    for step in range(STEPS_PER_ROUND):
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / STEPS_PER_ROUND)
        own = torch.randint(len(spoken), (counts[0],), generator=generator)
        rest = torch.randint(len(other), (counts[2],), generator=generator)
        if counts[1]:
            rest = torch.cat([rest, alarms[torch.randint(len(alarms), (counts[1],), generator=generator)]])
        x = (torch.cat([spoken[own], other[rest]]).float() - network.mean) * network.scale
        y = torch.cat([target[own], torch.zeros(len(rest), dtype=torch.long)])
        hidden = nn.functional.dropout(nn.functional.gelu(network.inner(x)), DROPOUT)
        loss = nn.functional.cross_entropy(network.outer(hidden), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses[-STEPS_PER_ROUND // 10 :]))


def thresholds_for(scores: Sequence[NDArray[np.float64]], *, keywords: int) -> list[float]:
    """The threshold of each keyword: above what any of the other speech (F, K each) scores, with a margin."""
    highest = np.max([s.max(0, initial=0.0) for s in scores], axis=0) if scores else np.zeros(keywords)
    return [round(float(min(0.99, max(LEAST_THRESHOLD, h + MARGIN))), 3) for h in highest]
