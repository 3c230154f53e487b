"""One row per bundle of a set: what it is, how far from torch, what it costs, and how fast it may be on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reuse_distill.devices.device_profiles import DeviceProfile
from reuse_distill.devices.estimate import Rates, estimate, host_rates, rates_of, work_of
from reuse_distill.export.device_set.set_plan import Planned
from reuse_distill.runtime.bundle_format.manifest import Manifest
from reuse_distill.runtime.record import to_dict

COUNTED = ("built", "deferred", "refused", "left out")


@dataclass(frozen=True)
class BundleOutcome:
    """What became of one planned bundle; ``reason`` is why it is not built."""

    planned: Planned
    status: str
    reason: str = ""
    manifest: Manifest | None = None


def row(outcome: BundleOutcome, rates: Rates | None) -> dict[str, Any]:
    """For ``comparison.json``; None is unmeasured.

    Of a deferred bundle nothing is measured but what was ``prepared`` for its device: those figures stand apart.
    """
    planned, manifest = outcome.planned, outcome.manifest
    values: dict[str, Any] = {
        "name": planned.name,
        "target": planned.target,
        "precision": planned.precision,
        "mode": planned.mode,
        "status": outcome.status,
        "reason": outcome.reason,
    }
    if manifest is None:
        return values
    prepared, g = manifest.parity.get("prepared"), manifest.geometry
    return {
        **values,
        "artifact": manifest.artifact,
        "artifact_bytes": manifest.artifact_bytes,
        "recipe": manifest.quantisation.get("recipe"),
        "bound": manifest.parity.get("bound"),
        **compared(manifest.parity),
        "prepared": {"run": prepared["run"], **compared(prepared)} if prepared else None,
        "estimates": manifest.estimates,
        "latency_ms": None if manifest.kind == "offline" else {"worst": g.worst_latency_ms, "mean": g.mean_latency_ms},
        "compute": computing(manifest, rates),
        "readable_by": (manifest.device or {}).get("jetpacks"),
    }


def compared(parity: dict[str, Any]) -> dict[str, Any]:
    """How far from torch, in all, by slices and at worst."""
    return {
        "measured": parity.get("measured"),
        "measured_by": parity.get("by"),
        "slices": {one["slice"]: one["mean_cosine"] for one in parity.get("slices", [])},
        "worst": parity.get("worst"),
    }


def computing(manifest: Manifest, rates: Rates | None) -> dict[str, Any] | None:
    """The roofline's band for the device; None where its rates, or the MACs, are not known."""
    if rates is None or rates.macs_per_s is None:
        return None
    estimated = estimate(work_of(manifest), rates)
    if estimated.rtf_low is None:
        return None
    step = estimated.step_ms()
    return {
        "rtf": [estimated.rtf_low, estimated.rtf_high],
        "step_ms": list(step) if step else None,
        "bound_by": estimated.bound_by,
        "origin": rates.origin,
    }


def device_rates(profile: DeviceProfile, outcome: BundleOutcome, *, threads: int) -> Rates | None:
    """Of one core of the device; None where the profile does not tell them for this target."""
    if outcome.manifest is None:
        return None
    planned = outcome.planned
    if profile.family == "host":
        return host_rates(precision=planned.precision, threads=threads)
    return rates_of(profile, precision=planned.precision, target=planned.target, threads=threads)


def comparison(profile: DeviceProfile, source: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """``comparison.json``."""
    counts = {status: sum(one["status"] == status for one in rows) for status in COUNTED}
    return {
        "schema": 1,
        "device": profile.name,
        "title": profile.title,
        "profile": to_dict(profile),
        "source": source,
        "counts": counts,
        "bundles": rows,
    }
