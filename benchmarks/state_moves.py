"""One stream moved from engine to engine in the middle of an utterance, against the same stream left where it began.

    python -m benchmarks.state_moves BUNDLE BUNDLE [BUNDLE ...] --json benchmarks/results/state_moves.json

The bundles are one student's steps, of one chunk size, for different engines. The stream begins on the first and is
moved by snapshot, never at the edge of a chunk, through all of them and back to the first, ``--rounds`` times over.
Difference: the largest of all frames to each bundle that hears the whole utterance alone. Nothing is timed but a move.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.devices.measuring.host_context import collect
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ
from reuse_distill.runtime.streaming.framing import Frames

from benchmarks.command import write_json

STEP_APART = 9_001  # samples between moves: no multiple of a chunk


def moved(encoders: list[Encoder], wave: np.ndarray) -> tuple[np.ndarray, list[float], int]:
    """Features (F, W) of ``wave`` (T,), the milliseconds of every move, and the bytes of the largest snapshot."""
    stream, moves, largest = encoders[0].stream(), [], 0
    parts: list[Frames] = []
    for index, encoder in enumerate(encoders):
        if index:
            began = time.perf_counter()
            saved = stream.snapshot()
            stream = encoder.stream()
            stream.restore(saved)
            moves.append(1000 * (time.perf_counter() - began))
            largest = max(largest, len(saved))
        last = index == len(encoders) - 1
        piece = wave[STEP_APART * index :] if last else wave[STEP_APART * index : STEP_APART * (index + 1)]
        parts += stream.push(piece)
    parts += stream.finish()
    return np.asarray(encoders[-1].join(parts)), moves, largest


def measure(bundles: list[Path], rounds: int, seconds: float) -> dict[str, Any]:
    """What the JSON holds."""
    once = {folder: Encoder.load(folder, threads=1) for folder in bundles}
    route = [once[folder] for folder in bundles] * rounds + [once[bundles[0]]]
    wave = speech_like(max(int(SAMPLE_RATE_HZ * seconds), STEP_APART * (len(route) + 1)), seed=7)
    features, moves, largest = moved(route, wave)
    rows = []
    for encoder in once.values():
        alone = np.asarray(encoder.extract(wave))
        apart = difference(features[None], alone[None])
        manifest = encoder.manifest
        rows.append({
            "target": manifest.target, "precision": manifest.precision,
            "max_abs": float(np.abs(features - alone).max()), "mean_cosine": apart.mean_cosine,
        })  # fmt: skip
    where = collect()
    return {
        "route": [encoder.manifest.target for encoder in route], "moves": len(moves), "frames": len(features),
        "largest_feature": float(np.abs(features).max()), "against_alone": rows, "snapshot_bytes": largest,
        "move_ms": {"median": float(np.median(moves)), "max": max(moves)},
        "processor": where.processor, "software": where.software,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = measure(args.bundles, args.rounds, args.seconds)
    print(f"{' -> '.join(result['route'])}: {result['moves']} moves, {result['frames']} frames")
    for row in result["against_alone"]:
        print(f"  against {row['target']} alone: {row['max_abs']:.2e}, mean cosine {row['mean_cosine']:.6f}")
    print(f"  a snapshot of {result['snapshot_bytes']} bytes, {result['move_ms']['median']:.1f} ms a move")
    write_json(result, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
