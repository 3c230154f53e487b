"""An hour of speech through one stream and through many interleaved ones: does anything grow, slow down or drift?

    OMP_NUM_THREADS=1 python -m benchmarks.soak BUNDLE AUDIO [--hours 1] [--streams 16] [--json FILE]

AUDIO is a file, a folder or a manifest; it is repeated to fill the time. Streams are fed at their own places in the
audio with pushes of their own sizes, and stepped in batches. Reported: resident memory and step time, last quarter over
first, and the largest difference between the last minute of every stream and a fresh stream that starts as many frames
earlier as the past can reach.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.devices.measuring.sensors import resident_bytes
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.audio.audio_files import read_audio
from reuse_distill.runtime.audio.recordings import find_recordings
from reuse_distill.runtime.audio.resample import resample
from reuse_distill.runtime.geometry import HOP_SAMPLES
from reuse_distill.runtime.untrusted_input import from_dict

from benchmarks.command import write_json

MINUTE = 60 * 16_000


@dataclass
class Fed:
    """One stream of the soak: where it is in the audio, and its newest frames."""

    offset: int
    push: int
    position: int = 0
    tail: list[np.ndarray] = field(default_factory=list)

    def keep(self, features: np.ndarray) -> None:
        self.tail.append(features)
        while sum(len(rows) for rows in self.tail[1:]) > 3000:  # a minute
            self.tail.pop(0)


def main() -> None:
    """Run both soaks, print what was found, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("audio", type=Path)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    encoder = Encoder.load(args.bundle, provider="cpu", threads=1)
    if encoder.manifest.kind != "streaming":
        raise SystemExit("the soak is for streaming bundles")
    speech = _speech(args.audio)
    found = {
        f"{count} streams": soak(encoder, speech, int(args.hours * 3600 * 16_000), count) for count in (1, args.streams)
    }
    for name, row in found.items():
        print(name, json.dumps(row))
    write_json(found, args.json)


def soak(encoder: Encoder, speech: np.ndarray, samples: int, count: int) -> dict[str, Any]:
    """``samples`` samples through each of ``count`` streams; what was found."""
    rng = np.random.default_rng(count)
    streams = encoder.streams(count)
    fed = [Fed(int(rng.integers(len(speech))), int(rng.integers(160, 8000))) for _ in streams]
    step_s: list[float] = []
    memory: list[int] = []
    while any(f.position < samples for f in fed):
        for stream, f in zip(streams, fed, strict=True):
            if f.position < samples:
                stream.feed(_piece(speech, f.offset + f.position, min(f.push, samples - f.position)))
                f.position += min(f.push, samples - f.position)
        while ready := [i for i, stream in enumerate(streams) if stream.ready]:
            began = time.perf_counter()
            frames = encoder.step([streams[i] for i in ready])
            step_s.append((time.perf_counter() - began) / len(ready))
            for i, part in zip(ready, frames, strict=True):
                if part is not None:
                    fed[i].keep(part.features)
        memory.append(resident_bytes() or 0)
    return {
        "hours_each": round(samples / 16_000 / 3600, 3),
        "steps": len(step_s),
        "resident_mb_first_and_last_quarter": [round(v / 1e6, 1) for v in _quarters(memory)],
        "step_ms_per_stream_first_and_last_quarter": [round(1e3 * v, 3) for v in _quarters(step_s)],
        "last_minute_against_fresh_stream_max_abs": max(_against_fresh(encoder, speech, f, samples) for f in fed[:4]),
    }


def _quarters(values: list[Any]) -> tuple[float, float]:
    quarter = max(1, len(values) // 4)
    return statistics.median(values[:quarter]), statistics.median(values[-quarter:])


def _piece(speech: np.ndarray, start: int, length: int) -> np.ndarray:
    """``length`` samples of the endless repetition of ``speech``."""
    return np.take(speech, np.arange(start, start + length), mode="wrap")


def _against_fresh(encoder: Encoder, speech: np.ndarray, f: Fed, samples: int) -> float:
    """Largest difference of the last minute to a stream that began no earlier than the past can reach."""
    tail = np.concatenate(f.tail)
    chunk = encoder.manifest.geometry.chunk_frames
    back = len(tail) * HOP_SAMPLES + _past_frames(encoder) * HOP_SAMPLES
    start = max(0, (samples - back) // (HOP_SAMPLES * chunk)) * HOP_SAMPLES * chunk  # on the grid of the chunks
    with encoder.stream() as stream:
        fresh = np.concatenate([p.features for p in stream.push(_piece(speech, f.offset + start, samples - start))])
    return float(np.abs(tail - fresh[-len(tail) :]).max())


def _past_frames(encoder: Encoder) -> int:
    from reuse_distill.student import ChunkContext, StudentConfig
    from reuse_distill.student.attention import past_frames

    config = from_dict(StudentConfig, encoder.manifest.source["student"], where="manifest: source.student")
    geometry = encoder.manifest.geometry
    return past_frames(config, ChunkContext(geometry.chunk_frames, geometry.left_frames)) + geometry.chunk_frames


def _speech(source: Path) -> np.ndarray:
    """Up to 20 minutes of the recordings, joined."""
    parts: list[np.ndarray] = []
    for recording in find_recordings(source):
        audio = read_audio(recording.path)
        parts.append(resample(audio.samples, audio.sample_rate_hz))
        if sum(map(len, parts)) > 20 * MINUTE:
            break
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
