"""Attention maps of a distilled student on a recording that it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from reuse_distill.runtime.audio import read_audio
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ
from reuse_distill.runtime.resample import resample

SECONDS = 2.4


@dataclass(frozen=True)
class Pair:
    """A layer that computes its map and the next that takes it; maps (F, F) averaged over heads."""

    computing: int
    reusing: int
    computed: np.ndarray
    taken: np.ndarray

    @property
    def largest_difference(self) -> float:
        return float(np.abs(self.computed - self.taken).max())


def read_pair(checkpoint: Path, recording: Path) -> Pair:
    """The last pair of layers of the checkpoint in which one takes the other's map."""
    import torch
    from reuse_distill.student import load_checkpoint

    student = load_checkpoint(checkpoint)
    audio = read_audio(recording)
    wave = resample(audio.samples, audio.sample_rate_hz)[: int(SECONDS * SAMPLE_RATE_HZ)]
    with torch.no_grad():
        output = student(torch.from_numpy(np.ascontiguousarray(wave, np.float32))[None], with_maps=True)
    reusing = max(student.config.reuse_layers)
    source = student.config.map_source(reusing)
    maps = [one[0].mean(0).numpy() for one in output.maps]
    return Pair(source, reusing, maps[source - 1], maps[reusing - 1])
