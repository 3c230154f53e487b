"""The probe, on the side that is probed: features of fixed recordings, the self-test, and the nodes that ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from reuse_distill.devices.rehearsal.engine_profile import profile_nodes
from reuse_distill.devices.rehearsal.probe import RecordingResult, SideProbe, sample
from reuse_distill.devices.speech import speech_like
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ

QUIET = 0.1  # 20 dB below: quantised graphs differ first where the input is quiet
LONG_S = 12.0  # longer than the caches of shipped students
LOUD_S = 2.0
Progress = Callable[[str], None]


def run_probe(encoder: Any, *, seed: int, progress: Progress) -> SideProbe:
    """Everything that this side can say about the bundle. Raises RdError where the bundle does not run."""
    progress("probing: self-test")
    passed, text = _selftest(encoder)
    results = []
    for name, wave in recordings(encoder, seed=seed):
        progress(f"probing: {name}")
        results.append(_result(encoder, name, wave))
    progress("probing: kernels")
    nodes, reason = profile_nodes(encoder, seed=seed)
    return SideProbe(encoder.provider, passed, text, tuple(results), nodes, reason)


def recordings(encoder: Any, *, seed: int) -> list[tuple[str, npt.NDArray[np.float32]]]:
    """What both sides are given: the bundle's recording, the same 20 dB quieter, long and loud synthetic speech."""
    from reuse_distill.runtime.selftest import read_expected

    long = speech_like(int(LONG_S * SAMPLE_RATE_HZ), seed=seed)
    loud = np.clip(8 * long[: int(LOUD_S * SAMPLE_RATE_HZ)], -1, 1)
    made = [("12 s of synthetic speech", long), ("2 s of it, clipping", loud)]
    try:
        wave = read_expected(encoder.bundle).wave.astype(np.float32)
    except RdError:
        return [*made, ("12 s of synthetic speech, 20 dB quieter", np.float32(QUIET) * long)]
    return [("self-test recording", wave), ("self-test recording, 20 dB quieter", np.float32(QUIET) * wave), *made]


def _result(encoder: Any, name: str, wave: npt.NDArray[np.float32]) -> RecordingResult:
    frames = encoder.frames(wave, SAMPLE_RATE_HZ)
    outputs = [sample("features", frames.features)] if frames.features.shape[-1] else []
    outputs += [sample(head, rows) for head, rows in frames.heads.items()]
    return RecordingResult(name, tuple(outputs))


def _selftest(encoder: Any) -> tuple[bool | None, str]:
    from reuse_distill.runtime.parity import stated_bound
    from reuse_distill.runtime.selftest import read_expected

    try:
        stated_bound(encoder.manifest.parity)
        read_expected(encoder.bundle)
    except RdError as error:
        return None, f"unmeasured: {error.message}"
    result = encoder.selftest()
    return bool(result.passed), str(result)
