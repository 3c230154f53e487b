"""Planning without hardware: a roofline from MACs, bytes moved and a device profile. An estimate, and labelled as one.

Seconds of computing per second of audio (RTF) are at least MACs / (MACs a second at full rate), and at least
bytes moved / memory bandwidth; weights move once a step unless a cache holds them. Kernels reach a part of the
roofline only: between ``EFFICIENCY`` of it on the host where this was validated (docs/devices.md), which makes
the band.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
from reuse_distill.devices.device_profiles import DeviceProfile, find_profile, value_of
from reuse_distill.report.quantities import quantity
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.cli.command_line import bundle_or_shipped
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.untrusted_input import to_dict

EFFICIENCY = (0.10, 0.90)  # shares of the roofline that measured graphs reach; see docs/devices.md
MACS_KEY, WEIGHTS_KEY = "macs_per_second", "weight_bytes"
CPU_TARGETS = ("onnx", "ort", "openvino", "executorch", "litert")


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


def rates_of(profile: DeviceProfile, *, precision: str, target: str, threads: int) -> Rates:
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


SIZE = 768
REPEATS = 12
COPY_BYTES = 1 << 28
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


def measure_here() -> tuple[float, float]:
    """Best of several: fp32 MACs a second of a matrix product, bytes a second of a read."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((SIZE, SIZE)).astype(np.float32) for _ in range(2))
    data = np.ones(COPY_BYTES // 8)
    product = min(_seconds(lambda: a @ b) for _ in range(REPEATS))
    read = min(_seconds(data.sum) for _ in range(REPEATS))
    return SIZE**3 / product, COPY_BYTES / read


def _seconds(call: object) -> float:
    began = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - began


def host_rates(*, precision: str, threads: int) -> Rates:
    """Measured rates of one thread, times ``threads`` for computing. NumPy has no int8 product to measure: for int8 the
    fp32 rate is the slow end of the band and four times that rate (the width of the numbers) the fast one."""
    env = {**os.environ, **ONE_THREAD}
    done = subprocess.run(
        [sys.executable, "-m", "reuse_distill.devices.estimate"], capture_output=True, text=True, env=env
    )
    if done.returncode != 0:
        raise RdError(f"the host's rates could not be measured: {done.stderr.strip()[-200:]}")
    macs, bandwidth = json.loads(done.stdout)
    note, gain = ("; int8 up to four times that", 4.0) if precision == "int8" else ("", 1.0)
    origin = f"measured here: fp32 matrix product and memory read of one thread{note}"
    return Rates(macs * threads, bandwidth, origin, gain)


EXIT_UNMEASURED = 4


def estimate_command(given: argparse.Namespace) -> int:
    """Print the estimate; exit status 4 where the manifest or the profile lacks what it needs."""
    path = bundle_or_shipped(given.bundle)
    manifest, profile = read_bundle(path).manifest, find_profile(given.device)
    if profile.family == "host":
        rates = host_rates(precision=manifest.precision, threads=given.threads)
    else:
        rates = rates_of(profile, precision=manifest.precision, target=manifest.target, threads=given.threads)
    result = estimate(work_of(manifest), rates)
    if given.json:
        print(json.dumps({"estimate": True, "device": profile.name, **to_dict(result)}, indent=1))
    else:
        print(describe(result, f"{path.resolve().name} on {profile.title}"))
    return 0 if result.rtf_low is not None else EXIT_UNMEASURED


def describe(result: Estimate, what: str) -> str:
    """The estimate for people, with everything that it rests on."""
    work, rates = result.work, result.rates
    lines = [f"ESTIMATE, nothing was run: {what}"]
    if result.rtf_low is None or result.rtf_high is None:
        no_macs, no_rate = f"source.{MACS_KEY} is not in the manifest", "the profile's rate is unmeasured"
        missing = no_macs if work.macs_per_s is None else no_rate
        lines.append(f"  real-time factor   unmeasured: {missing}")
    else:
        lines.append(
            f"  real-time factor   {quantity(result.rtf_low, 'ratio')} to {quantity(result.rtf_high, 'ratio')}"
        )
    if (step := result.step_ms()) is not None:
        lines.append(f"  time of a step     {quantity(step[0], 'time')} to {quantity(step[1], 'time')}")
    band = f"{100 * EFFICIENCY[0]:.0f} to {100 * EFFICIENCY[1]:.0f} % of the roofline"
    weights = f"{quantity(work.weight_bytes, 'bytes')} ({work.weight_origin})"
    rate, bandwidth = quantity(rates.macs_per_s, "compute"), quantity(rates.bytes_per_s, "rate")
    macs, compute = (
        quantity(work.macs_per_s, "compute").replace("/s", ""),
        quantity(result.compute_rtf, "ratio"),
    )
    lines += [
        f"  bound by           {result.bound_by}",
        f"  error band         {band}; weights in a cache at best, read at every step at worst",
        f"  work               {macs} a second of audio, weights {weights}",
        f"  rates              {rate}, {bandwidth} ({rates.origin})",
        f"  roofline           computing {compute}, memory {quantity(result.memory_rtf, 'ratio')} of real time",
    ]
    return "\n".join(lines)


if __name__ == "__main__":  # by ``host_rates``, in a process of its own that is held to one thread
    print(json.dumps(measure_here()))
