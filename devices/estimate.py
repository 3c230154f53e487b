"""Planning without hardware: a roofline from MACs, bytes moved and a device profile. An estimate, and labelled as one.

Seconds of computing per second of audio (RTF) are at least MACs / (MACs a second at full rate), and at least
bytes moved / memory bandwidth; weights move once a step unless a cache holds them. Kernels reach a part of the
roofline only: between ``EFFICIENCY`` of it on the host where this was validated (docs/devices.md), which makes
the band.
"""

from __future__ import annotations

from dataclasses import dataclass

from reuse_distill.devices.profile import Profile, value_of
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.manifest import Manifest

EFFICIENCY = (0.10, 0.90)  # shares of the roofline that measured graphs reach; see docs/devices.md
MACS_KEY, WEIGHTS_KEY = "macs_per_second", "weight_bytes"
CPU_TARGETS = ("onnx", "ort", "executorch")


@dataclass(frozen=True)
class Rates:
    """What one thread of a device can do at most; None is unmeasured."""

    macs_per_s: float | None
    bytes_per_s: float | None
    origin: str
    gain: float = 1.0  # how much faster computing may be than ``macs_per_s``, where that rate is of another precision


@dataclass(frozen=True)
class Work:
    """What a bundle does for one second of audio."""

    macs_per_s: float | None  # None: the manifest does not tell
    weight_bytes: float
    weight_origin: str
    steps_per_s: float | None  # None: whole utterances, weights move once


@dataclass(frozen=True)
class Estimate:
    """RTF and step time as a band; None is unmeasured."""

    rtf_low: float | None
    rtf_high: float | None
    compute_rtf: float | None  # the roofline's two legs
    memory_rtf: float | None
    rates: Rates
    work: Work

    @property
    def bound_by(self) -> str:
        """Which leg is the longer one."""
        if self.compute_rtf is None or self.memory_rtf is None:
            return "unmeasured"
        return "computing" if self.compute_rtf >= self.memory_rtf else "memory"

    def step_ms(self) -> tuple[float, float] | None:
        """Band of the time that one step takes."""
        if self.rtf_low is None or self.rtf_high is None or not self.work.steps_per_s:
            return None
        period_ms = 1000 / self.work.steps_per_s
        return self.rtf_low * period_ms, self.rtf_high * period_ms


def work_of(manifest: Manifest) -> Work:
    """MACs and bytes from the manifest (``source.macs_per_second``, ``source.weight_bytes``); where the weights are not
    told the size of the artifact stands for them."""
    macs = _positive(manifest.source.get(MACS_KEY), MACS_KEY)
    weights = _positive(manifest.source.get(WEIGHTS_KEY), WEIGHTS_KEY)
    chunk = manifest.geometry.chunk_frames
    return Work(
        macs_per_s=macs,
        weight_bytes=weights if weights is not None else float(manifest.artifact_bytes),
        weight_origin="manifest" if weights is not None else "size of the artifact",
        steps_per_s=50 / chunk if chunk else None,
    )


def _positive(value: object, key: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise RdError(f"manifest: source.{key} is {value!r}, expected a number above 0")
    return float(value)


def rates_of(profile: Profile, *, precision: str, target: str, threads: int) -> Rates:
    """The profile's full rate of ``threads`` cores for this precision; an accelerator's stated rate is not used, since
    it is for dense work on large batches (or sparse work), which a stream is not."""
    bandwidth = value_of(profile.memory.bandwidth, "rate")
    per_cycle = profile.cpu.int8_macs_per_cycle if precision == "int8" else profile.cpu.fp32_macs_per_cycle
    clock, macs = value_of(profile.cpu.clock, "frequency"), value_of(per_cycle, "count")
    cores = value_of(profile.cpu.cores, "count")
    if cores is not None and threads > cores:
        raise RdError(f"--threads {threads}: {profile.title} has {cores:.0f} cores")
    known = clock is not None and macs is not None and target in CPU_TARGETS
    return Rates(
        macs_per_s=clock * macs * threads if known and clock is not None and macs is not None else None,
        bytes_per_s=bandwidth,
        origin=f"profile {profile.name}, {threads} core{'s' if threads > 1 else ''} at the highest clock",
    )


def estimate(work: Work, rates: Rates) -> Estimate:
    """The band: the longer leg of the roofline at the best and at the worst efficiency seen."""
    compute = work.macs_per_s / rates.macs_per_s if work.macs_per_s and rates.macs_per_s else None
    moved = work.weight_bytes * (work.steps_per_s or 1.0)
    memory = moved / rates.bytes_per_s if rates.bytes_per_s else None
    if compute is None:
        return Estimate(None, None, compute, memory, rates, work)
    least = compute / rates.gain  # and a cache may hold the weights
    most = max(compute, memory or 0.0)
    return Estimate(least / EFFICIENCY[1], most / EFFICIENCY[0], compute, memory, rates, work)
