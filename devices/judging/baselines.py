"""Baselines: raw latencies of earlier runs, kept per device, software version, bundle and workload in one JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from reuse_distill.devices.judging.judge import FloatArray
from reuse_distill.devices.judging.series_stability import BIMODAL, Stability
from reuse_distill.devices.measuring.measurement import Measurement
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.untrusted_input import from_dict, to_dict
from reuse_distill.runtime.whole_files import write_whole

BASELINE_SCHEMA = 1
BUSY, TEMPERATURE = "busy", "temperature"
ACCEPTABLE = (BIMODAL, BUSY, TEMPERATURE)  # what may be accepted by name
KEPT_RUNS = 12  # the newest; several runs show how far runs differ without a change
BUSY_LOAD = 0.5  # of the cores, before the run


@dataclass(frozen=True)
class Key:
    """What has to be the same for two runs to be comparable."""

    device: str  # its name in the call or the fleet file
    fingerprint: str  # board, processor, cores: another machine under the same name is another device
    software: str
    bundle: str  # kind, target, precision and chunk: what stays the same while the model changes
    workload: str


@dataclass(frozen=True)
class BaselineRun:
    """One earlier run."""

    taken_at: str
    artifact_sha256: str
    latency_ms: tuple[float, ...]
    load_share: float | None = None  # load average before the run over the cores
    reference_ms: float | None = None  # the fixed workload beside the run
    start_temperature_c: float | None = None  # hottest zone before the run; None where the device does not tell

    @property
    def busy(self) -> bool:
        return self.load_share is not None and self.load_share > BUSY_LOAD


@dataclass(frozen=True)
class BaselineEntry:
    key: Key
    machine: str  # for people: board and processor
    runs: tuple[BaselineRun, ...]


@dataclass(frozen=True)
class Baselines:
    """A whole baseline file."""

    entries: tuple[BaselineEntry, ...] = ()
    schema: int = BASELINE_SCHEMA


def key_of(measurement: Measurement, *, device: str) -> Key:
    """The key of a run on ``device``."""
    bundle, where = measurement.bundle, measurement.context
    return Key(
        device=device,
        fingerprint=where.fingerprint,
        software=where.software_for(bundle.target),
        bundle=f"{bundle.kind}, {bundle.target}, {bundle.precision}, {bundle.chunk_frames} frames a chunk",
        workload=measurement.request.label,
    )


def series_of(measurement: Measurement, what: str = "latency_ms") -> FloatArray:
    """Latencies (or ``service_ms``) of all streams in the order in which the chunks were done."""
    at_s = np.concatenate([np.asarray(one.at_s) for one in measurement.samples])
    values = np.concatenate([np.asarray(getattr(one, what)) for one in measurement.samples])
    return np.asarray(values[np.argsort(at_s, kind="stable")], dtype=np.float64)


def load_share(measurement: Measurement) -> float | None:
    """Load average before the run over the cores; None where the device does not tell."""
    where = measurement.context
    return None if where.load_before is None else where.load_before / max(1, where.cores)


def reference_of(measurement: Measurement) -> float | None:
    """Time of the fixed reference workload beside the run, ms; None for runs of before."""
    value = _number(measurement, "reference_ms")
    return value if value is not None and value > 0 else None


def start_temperature(measurement: Measurement) -> float | None:
    """The hottest zone before the run, °C; None where the answer has no number there."""
    return _number(measurement, "start_temperature_c")


def _number(measurement: Measurement, name: str) -> float | None:
    """A detail of the answer; None where it is no number."""
    value = measurement.details.get(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def read_baselines(path: Path) -> Baselines:
    """Read a baseline file. Raises RdError where it is absent, damaged or of another schema."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RdError(f"{path}: there is no such baseline", hint="--save-baseline FILE writes one") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RdError(f"{path}: not a baseline file ({error})", hint="--save-baseline FILE writes one") from None
    baselines = from_dict(Baselines, data, where=str(path))
    if baselines.schema != BASELINE_SCHEMA:
        raise RdError(f"{path}: baseline schema {baselines.schema}, this version reads {BASELINE_SCHEMA}")
    return baselines


def check_owner(baselines: Baselines, devices: Sequence[str], *, path: Path) -> None:
    """Raise RdError, before anything is measured, where the file is of other devices altogether."""
    names = sorted({entry.key.device for entry in baselines.entries})
    if not set(names) & set(devices):
        raise RdError(
            f"{path}: a baseline of {', '.join(names) or 'no device'}, this run is on {', '.join(devices)}",
            hint="take the baseline on the device that is judged: --save-baseline FILE",
        )


def baseline_for(baselines: Baselines, key: Key, *, path: Path) -> BaselineEntry | None:
    """The entry for ``key``, or None where this device has none for this software, bundle and workload.

    Raises RdError where the file holds the device's name with another machine behind it, or not at all.
    """
    same_name = [entry for entry in baselines.entries if entry.key.device == key.device]
    same_machine = [entry for entry in same_name if entry.key.fingerprint == key.fingerprint]
    if not same_name:
        raise RdError(f"{path}: no baseline of {key.device} in it", hint="--save-baseline FILE adds one")
    if not same_machine:
        raise RdError(
            f"the one of {key.device} was taken on another machine ({same_name[-1].machine})",
            hint="take it again on this one (--save-baseline FILE), or register the machines under two names",
        )
    return next((entry for entry in same_machine if entry.key == key), None)


def why_none(baselines: Baselines, key: Key) -> str:
    """What differs from the nearest entry of this device, for people."""
    mine = [
        entry
        for entry in baselines.entries
        if (entry.key.device, entry.key.fingerprint) == (key.device, key.fingerprint)
    ]
    parts = ("workload", "bundle", "software")
    nearest = min(mine, key=lambda e: sum(getattr(e.key, p) != getattr(key, p) for p in parts))
    for part in parts:
        theirs, ours = getattr(nearest.key, part), getattr(key, part)
        if theirs != ours:
            return f"no baseline for this {part} ({ours}; the file has {theirs})"
    return "no baseline"


def added(
    baselines: Baselines, measurement: Measurement, *, device: str, stability: Stability, accepted: Sequence[str] = ()
) -> Baselines:
    """With this run as the newest of its entry. Raises RdError for a run that no other should be compared with:
    throttled, drifting, and bimodal or on a busy machine unless these are among ``accepted``."""
    named = f"{stability.name} ({stability.evidence})"
    if not stability.comparable or (stability.name == BIMODAL and BIMODAL not in accepted):
        hint = f"--accept {BIMODAL} keeps it" if stability.name == BIMODAL else "take it again on a quiet device"
        raise RdError(f"{device}: not kept as a baseline, the run is {named}", hint=hint)
    load = load_share(measurement)
    if load is not None and load > BUSY_LOAD and BUSY not in accepted:
        message = f"{device}: not kept as a baseline, the machine was busy before the run (load {load:.1f} per core)"
        raise RdError(message, hint=f"--accept {BUSY} keeps it")
    key, where = key_of(measurement, device=device), measurement.context
    run = BaselineRun(
        measurement.taken_at,
        measurement.bundle.artifact_sha256,
        tuple(series_of(measurement).tolist()),
        load,
        reference_of(measurement),
        start_temperature(measurement),
    )
    old = next((entry for entry in baselines.entries if entry.key == key), None)
    runs = (*(old.runs if old else ()), run)[-KEPT_RUNS:]
    entry = BaselineEntry(key, f"{where.machine}, {where.processor}", runs)
    return replace(baselines, entries=(*(e for e in baselines.entries if e.key != key), entry))


def write_baselines(path: Path, baselines: Baselines) -> None:
    """Write the file whole or not at all."""
    write_text(path, json.dumps(to_dict(baselines), allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file of ours whole or not at all: a temporary file beside it, then a rename."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise RdError(f"{path}: could not be written ({error.strerror or error})") from None
