"""What exported bundles take for utterances of several lengths: engines and precisions of one student, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.distill.tradeoff.side_by_side import LENGTHS_S, Spread, machine, ratios, spread, take_turns
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle import read_bundle
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ

REPEATS = 10


@dataclass(frozen=True)
class BundleTimes:
    """Processor time of one bundle, seconds per second of audio, by the length of the utterance in seconds."""

    name: str
    target: str
    precision: str
    kind: str
    size_bytes: int
    processor_s: dict[int, Spread]
    faster: dict[int, Spread]  # times the first bundle, turn by turn


@dataclass(frozen=True)
class MeasuredBundles:
    """Bundles that took turns on one machine, one thread each."""

    bundles: tuple[BundleTimes, ...]
    machine: dict[str, Any]
    repeats: int


def timed_bundles(folders: Sequence[Path], wave: np.ndarray, *, repeats: int = REPEATS) -> MeasuredBundles:
    """The first seconds of ``wave`` (T,), repeated where it is too short, by every bundle in turns.

    Raises RdError for folders that are no bundles, and where there is no audio.
    """
    if not len(wave):
        raise RdError("there is no audio to time bundles with", hint="--data: recordings of a few seconds")
    bundles = [read_bundle(folder) for folder in folders]
    encoders = [Encoder.load(bundle.path, threads=1) for bundle in bundles]
    wave = np.resize(wave, max(LENGTHS_S) * SAMPLE_RATE_HZ).astype(np.float32)
    seconds_of: dict[int, dict[str, list[float]]] = {}
    for seconds in LENGTHS_S:
        piece = wave[: seconds * SAMPLE_RATE_HZ]
        calls = {f"{n}": partial(one.extract, piece, SAMPLE_RATE_HZ) for n, one in enumerate(encoders)}
        turns = take_turns(calls, repeats=repeats)
        seconds_of[seconds] = {n: [s / seconds for s in one.processor_s] for n, one in turns.items()}
    rows = [
        BundleTimes(
            name=_name(bundle.path),
            target=bundle.manifest.target,
            precision=bundle.manifest.precision,
            kind=bundle.manifest.kind,
            size_bytes=bundle.manifest.artifact_bytes,
            processor_s={seconds: spread(times[f"{n}"]) for seconds, times in seconds_of.items()},
            faster={seconds: ratios(times["0"], times[f"{n}"]) for seconds, times in seconds_of.items()},
        )
        for n, bundle in enumerate(bundles)
    ]
    return MeasuredBundles(tuple(rows), machine(1), repeats)


def _name(folder: Path) -> str:
    """The folder, or what it lies in where it is a trade-off's ``POINT/bundle``."""
    path = folder.resolve()
    return path.parent.name if path.name == "bundle" else path.name
