"""What a measuring app answers: raw times and readings, completed here with the numbers that follow from them.

An app computes no statistics and does not judge itself: percentiles, throttling, energy and the comparison of its
features with the bundle's are made by the same code as for every other device.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import replace

import numpy as np
from reuse_distill.devices.judging.confidence import too_short
from reuse_distill.devices.measuring import latency_metrics
from reuse_distill.devices.measuring.measurement import Measurement, Request, StreamSamples
from reuse_distill.devices.measuring.measurement_run import bundle_facts
from reuse_distill.devices.measuring.stream_driver import Series
from reuse_distill.devices.transports.transport import NotMeasured
from reuse_distill.runtime.bundle_format.bundle import SELFTEST, Bundle
from reuse_distill.runtime.equivalence.parity import difference, stated_bound
from reuse_distill.runtime.equivalence.selftest import read_expected
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import frames_for

HINT = "the app's answer is not one of this measurement"
MEASURED_THERE = ("load", "first_frame", "peak_memory", "artifact_size", "cpu_rtf")


def has_recording(bundle: Bundle) -> bool:
    """Whether the bundle has a recording with features to compare with."""
    return SELFTEST in bundle.manifest.files and bool(bundle.manifest.layers)


def features_from(text: str, bundle: Bundle, *, where: str) -> np.ndarray:
    """Features (N, F, W) of the bundle's recording from an app's base64 of float32 [frame, layer, width].

    Raises NotMeasured for anything that is not exactly that.
    """
    manifest = bundle.manifest
    frames, layers = frames_for(len(read_expected(bundle).wave)), len(manifest.layers)
    size = 4 * frames * layers * manifest.feature_width
    if len(text.strip()) != 4 * ((size + 2) // 3):
        raise NotMeasured(f"{where}: {len(text)} characters, {4 * ((size + 2) // 3)} hold {frames} frames", hint=HINT)
    try:
        data = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise NotMeasured(f"{where}: not usable ({error})", hint=HINT) from None
    values = np.frombuffer(data[:size], "<f4").reshape(frames, layers, manifest.feature_width)
    if not np.isfinite(values).all():
        raise NotMeasured(f"{where}: holds a NaN or an infinity", hint="rd-stream --certify shows more")
    return np.ascontiguousarray(values.transpose(1, 0, 2))


def completed(
    measurement: Measurement, request: Request, bundle: Bundle, features: np.ndarray | None, *, where: str
) -> Measurement:
    """The whole measurement.

    Raises NotMeasured where it is not of this request and bundle, or its features are wrong.
    """
    manifest = bundle.manifest
    if measurement.request != request:
        raise NotMeasured(f"{where}: answers another request than was sent", hint=HINT)
    ours, theirs = manifest.artifact_sha256, measurement.bundle.artifact_sha256
    if theirs != ours:
        raise NotMeasured(f"{where}: measured artifact {theirs[:10]}, {ours[:10]} was sent", hint=HINT)
    if len(measurement.samples) != request.streams:
        raise NotMeasured(f"{where}: {len(measurement.samples)} streams, {request.streams} were requested", hint=HINT)
    measurement = replace(measurement, bundle=bundle_facts(bundle, manifest.geometry, request))
    period_ms, series = measurement.period_ms, [_series(one) for one in measurement.samples]
    samples = sum(len(one.end) for one in series)
    audio_s = (samples + request.streams * (request.warmup_chunks + 1)) * period_ms / 1000
    metrics = {
        **latency_metrics.latency_metrics(series, period_ms=period_ms, mode=request.mode),
        **{name: measurement.metrics.get(name) for name in MEASURED_THERE},
        **latency_metrics.energy_metrics(measurement.readings, audio_s=audio_s),
        "temperature": latency_metrics.highest(measurement.readings),
    }
    names = ["p90", "p99", *(["p999"] if request.soak_s else [])]
    lacking = too_short(names, samples, period_s=period_ms / 1000, streams=request.streams)
    return replace(
        measurement,
        metrics=metrics,
        throttling=latency_metrics.throttling(measurement.readings),
        notes=(*measurement.notes, *([lacking] if lacking else [])),
        details={**measurement.details, "selftest": _selftest(bundle, features, where)},
    )


def _series(one: StreamSamples) -> Series:
    """Times of the chunks from their latencies: due and start lie before the end by these."""
    end = np.asarray(one.at_s)
    due, start = end - np.asarray(one.latency_ms) / 1000, end - np.asarray(one.service_ms) / 1000
    return Series(due.tolist(), start.tolist(), end.tolist())


def _selftest(bundle: Bundle, features: np.ndarray | None, where: str) -> str:
    """The app's features against the bundle's, within the bound that the manifest states."""
    if features is None:
        return "unmeasured: the bundle has no recording with features"
    try:
        bound = stated_bound(bundle.manifest.parity)
        result = difference(features, read_expected(bundle).features)
    except RdError as error:
        return f"unmeasured: {error.message}"
    limits = ", ".join(f"{name} {value:g}" for name, value in bound.items())
    if not result.within(bound):
        message = f"{where}: gives other features than the bundle's source: {result} (bound: {limits})"
        raise NotMeasured(message, hint="rd-stream --certify shows more")
    return f"passed: {result} over {result.frames} frames (bound: {limits})"
