"""``rd-latency estimate BUNDLE --device NAME``."""

from __future__ import annotations

import argparse
import json

from reuse_distill.devices.estimate import EFFICIENCY, MACS_KEY, Estimate, estimate, rates_of, work_of
from reuse_distill.devices.hostrates import host_rates
from reuse_distill.devices.profile import find_profile
from reuse_distill.report.quantities import quantity
from reuse_distill.runtime.bundle import read_bundle
from reuse_distill.runtime.command_line import bundle_or_shipped
from reuse_distill.runtime.record import to_dict

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
