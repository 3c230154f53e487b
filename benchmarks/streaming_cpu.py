"""Streaming against offline, a growing utterance and a sliding window: one thread, one run, taking turns.

    OMP_NUM_THREADS=1 python -m benchmarks.streaming_cpu [--json benchmarks/results/streaming_cpu.json]

``arm-stream`` with random weights, L = 128 cached frames. Costs are compute per second of audio; ratios are by turns,
median with 10th and 90th percentile. Memory is the peak of a process of its own that runs the int8 bundle.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.export.spec import Offline, Streaming
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.student import ChunkContext

from benchmarks.artifacts import bundle_of, last_layer, student_of
from benchmarks.command import parser, print_times, workplace, write_json
from benchmarks.timing import alternate, machine, ratios, shown, spread

CHUNKS = (1, 2, 4, 8, 16)
LEFT = 128
SECONDS = 10
BATCH = 8
_MEMORY = """
import sys
from reuse_distill.devices.measuring.sensors import peak_bytes
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.audio.audio_files import read_audio
encoder, audio = Encoder.load(sys.argv[1], provider="cpu", threads=1), read_audio(sys.argv[2])
streams = encoder.streams(int(sys.argv[3]))
for start in range(0, len(audio.samples), 2560):
    for stream in streams:
        stream.feed(audio.samples[start : start + 2560])
    while any(stream.ready for stream in streams):
        encoder.step(streams)
assert "torch" not in sys.modules
print(peak_bytes())
"""


def main() -> None:
    """Build the bundles, time them, print a table, write the JSON."""
    args = parser(__doc__).parse_args()
    work = workplace(args)
    student = student_of("arm-stream")
    offline = _encoder(bundle_of(student, work / "offline", last_layer(student, Offline(), "fp32")))
    steps = {c: _step_bundle(work, c, "fp32") for c in CHUNKS}
    wave = speech_like(16_000 * SECONDS, seed=5)
    encoders = {c: _encoder(bundle) for c, bundle in steps.items()}
    result: dict[str, Any] = {"machine": machine(threads=1), "repeats": args.repeats, "left_frames": LEFT}
    result["one_stream"] = _one_stream(offline, encoders, wave, args.repeats)
    result["batch"] = _batch(offline, encoders[8], wave, args.repeats)
    result["baselines"] = _baselines(offline, encoders[8], wave, max(3, args.repeats // 4))
    result["state_bytes_per_stream"] = {"fp32": _state_bytes(steps[8], 4), "fp16": _state_bytes(steps[8], 2)}
    int8 = _step_bundle(work, 8, "int8")
    result["int8_peak_memory_mb"] = {f"{n} streams": _peak_mb(int8, n, work) for n in (1, 16)}
    _show(result)
    write_json(result, args.json)


def _step_bundle(work: Path, chunk: int, precision: str) -> Path:
    student = student_of("arm-stream")
    spec = last_layer(student, Streaming(ChunkContext(chunk, LEFT)), precision)
    return bundle_of(student, work / f"step-{chunk}-{precision}", spec)


def _encoder(bundle: Path) -> Encoder:
    return Encoder.load(bundle, provider="cpu", threads=1)


def _one_stream(offline: Encoder, encoders: dict[int, Encoder], wave: np.ndarray, repeats: int) -> dict[str, Any]:
    calls: dict[str, Callable[[], object]] = {"offline": lambda: offline.extract(wave)}
    for chunk, encoder in encoders.items():
        calls[f"C={chunk}"] = lambda e=encoder: e.extract(wave)  # type: ignore[misc]
    taken = alternate(calls, repeats=repeats)
    rows = {}
    for name, times in taken.items():
        rows[name] = {"rtf": spread([t / SECONDS for t in times]), "over_offline": ratios(times, taken["offline"])}
    for chunk, encoder in encoders.items():
        rows[f"C={chunk}"]["step_ms"] = _step_times(encoder, wave, chunk)
        rows[f"C={chunk}"]["algorithmic_latency_ms"] = encoder.manifest.geometry.worst_latency_ms
    return rows


def _step_times(encoder: Encoder, wave: np.ndarray, chunk: int) -> dict[str, float]:
    """Milliseconds per push of one chunk, two passes over the recording."""
    taken = []
    for _ in range(2):
        with encoder.stream() as stream:
            stream.push(wave[: 320 * chunk + 80])
            for start in range(320 * chunk + 80, len(wave) - 320 * chunk, 320 * chunk):
                began = time.perf_counter()
                stream.push(wave[start : start + 320 * chunk])
                taken.append(1000 * (time.perf_counter() - began))
    return {
        "p50": round(float(np.percentile(taken, 50)), 3),
        "p99": round(float(np.percentile(taken, 99)), 3),
        "max": round(max(taken), 3),
        "steps": len(taken),
    }


def _batch(offline: Encoder, encoder: Encoder, wave: np.ndarray, repeats: int) -> dict[str, Any]:
    """8 streams stepped as one batch, cost per stream, over the same student offline."""

    def together() -> None:
        streams = encoder.streams(BATCH)
        for start in range(0, len(wave), 2560):
            for stream in streams:
                stream.feed(wave[start : start + 2560])
            while any(stream.ready for stream in streams):
                encoder.step(streams)
        for stream in streams:
            stream.end()
        while any(stream.ready for stream in streams):
            encoder.step(streams)

    taken = alternate({"offline": lambda: offline.extract(wave), "batch": together}, repeats=repeats)
    each = [t / BATCH for t in taken["batch"]]
    return {
        "streams": BATCH,
        "rtf_per_stream": spread([t / SECONDS for t in each]),
        "over_offline": ratios(each, taken["offline"]),
    }


def _baselines(offline: Encoder, encoder: Encoder, wave: np.ndarray, repeats: int) -> dict[str, Any]:
    """What one would do without a step: run the growing utterance again, or slide a window, every 8 frames."""

    def growing() -> None:
        for end in range(2640, len(wave) + 1, 2560):
            offline.extract(wave[:end])

    def sliding() -> None:
        with offline.stream(chunk_frames=8, left_frames=128, right_frames=4) as stream:
            stream.push(wave)
            stream.finish()

    calls = {"streaming, C=8": lambda: encoder.extract(wave), "growing utterance": growing, "sliding window": sliding}
    taken = alternate(calls, repeats=repeats, warmup=1)
    ours = taken["streaming, C=8"]
    return {
        n: {"rtf": spread([t / SECONDS for t in ts]), "over_streaming": ratios(ts, ours)} for n, ts in taken.items()
    }


def _state_bytes(bundle: Path, width: int) -> int:
    states = read_bundle(bundle).manifest.states
    return width * sum(math.prod(int(n) for n in state.shape[1:]) for state in states)


def _peak_mb(bundle: Path, streams: int, work: Path) -> float:
    import soundfile

    file = work / "speech.wav"
    soundfile.write(file, speech_like(16_000 * 20, seed=1), 16_000, subtype="PCM_16")
    command = [sys.executable, "-c", _MEMORY, str(bundle), str(file), str(streams)]
    return round(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1e6, 1)


def _steps(told: dict[str, float] | None) -> str:
    return "" if told is None else f"{told['p50']:.1f} / {told['p99']:.1f} / {told['max']:.1f}"


def _show(result: dict[str, Any]) -> None:
    rows = {name: {**row, "step": _steps(row.get("step_ms"))} for name, row in result["one_stream"].items()}
    print_times("one stream", rows, {"over_offline": "over offline", "step": "step p50 / p99 / max ms"})
    batch = result["batch"]
    print(f"\n{batch['streams']} streams in a batch, each: over offline {shown(batch['over_offline'])}")
    print_times("without a step", result["baselines"], {"over_streaming": "over streaming"})
    print("\nstate bytes per stream", result["state_bytes_per_stream"])
    print("int8 peak memory MB   ", result["int8_peak_memory_mb"])
    print("machine", result["machine"])


if __name__ == "__main__":
    main()
