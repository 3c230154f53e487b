"""What a switch of the chunk size costs, against steps that do not switch, in turns within one stream.

    python -m benchmarks.dial_switch BUNDLE --rounds 60

BUNDLE has steps of several sizes (`rd-export --chunks 1,4,8,16`). Every round visits every ordered pair of sizes once,
in a new order: one step of the new size right after the switch, then two more of it. Times are processor time of the
thread that steps (one engine thread), so that other programs lengthen them little. Prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import defaultdict
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.devices.measuring.host_context import collect
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.runtime import Encoder, RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES

RESULT = Path(__file__).parent / "results" / "dial_switch.json"
STEADY = 2  # steps of a size after the one that switched to it


def measure(encoder: Encoder, rounds: int) -> tuple[dict[int, list[float]], dict[tuple[int, int], list[float]]]:
    """Milliseconds of steady steps by size, and of the step after a switch by (old size, new size)."""
    sizes = encoder.manifest.chunk_choices
    if len(sizes) < 2:
        raise RdError(f"{encoder.bundle.path}: steps of one size", hint="rd-export --chunks 1,4,8,16")
    rng, stream = np.random.default_rng(0), encoder.stream(chunk_frames=sizes[0])
    audio = speech_like(60 * 16_000, seed=1)
    steady, switched, at = defaultdict[int, list[float]](list), defaultdict[tuple[int, int], list[float]](list), 0

    def step(chunk: int) -> float:
        nonlocal at
        stream.chunk_frames = chunk
        piece = np.take(audio, range(at, at + HOP_SAMPLES * chunk), mode="wrap")
        at += HOP_SAMPLES * chunk
        stream.feed(piece)
        began = time.thread_time()
        stream.push(np.zeros(0, np.float32))
        return 1000 * (time.thread_time() - began)

    for chunk in sizes:  # warm-up: buffers of every size are made once
        for _ in range(5):
            step(chunk)
    for _ in range(rounds):
        for old, new in rng.permutation(list(permutations(sizes, 2))).tolist():
            for _ in range(STEADY):
                step(old)
            steady[old].append(step(old))
            switched[old, new].append(step(new))
    return dict(steady), dict(switched)


def table(steady: dict[int, list[float]], switched: dict[tuple[int, int], list[float]]) -> list[dict[str, Any]]:
    """A row per new size: the median steady step, and the median cost of the switch from each other size."""
    rows = []
    for new, times in steady.items():
        step_ms = float(np.median(times))
        costs = {old: float(np.median(ms)) - step_ms for (old, to), ms in switched.items() if to == new}
        worst = max(costs.values())
        rows.append({"chunk": new, "step_ms": step_ms, "cost_ms": costs, "worst_of_a_step": worst / step_ms})
    return sorted(rows, key=lambda row: int(row["chunk"]))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("bundle", type=Path)
    p.add_argument("--rounds", type=int, default=60)
    p.add_argument("--output", type=Path, default=RESULT)
    given = p.parse_args()
    encoder, load = Encoder.load(given.bundle, threads=1), os.getloadavg()[0]
    rows = table(*measure(encoder, given.rounds))
    print("| chunk | step | after a switch from: cost | worst, of a step |\n|---|---|---|---|")
    for row in rows:
        costs = ", ".join(f"{old}: {ms:+.3f} ms" for old, ms in sorted(row["cost_ms"].items()))
        print(f"| {row['chunk']} | {row['step_ms']:.3f} ms | {costs} | {100 * row['worst_of_a_step']:+.1f} % |")
    where = collect()
    document = {
        "bundle": encoder.bundle.path.name, "artifact": encoder.manifest.artifact_sha256,
        "precision": encoder.manifest.precision, "rounds": given.rounds, "rows": rows,
        "processor": where.processor, "software": where.software, "cores": where.cores,
        "load_average_before": round(load, 2), "python": platform.python_version(),
    }  # fmt: skip
    given.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["worst_of_a_step"] < 1 for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
