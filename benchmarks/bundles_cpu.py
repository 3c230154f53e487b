"""Bundles side by side: how much processor time a second of audio takes, in turns in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.bundles_cpu BUNDLE BUNDLE [BUNDLE ...] [--repeats N] [--json FILE]

Every bundle takes the same 20 s of speech-like signal through the runtime, one thread. Processor time, not the clock,
so that a busy machine says less; ratios are to the first bundle, turn by turn. Fidelity is each bundle's own, from its
manifest: to the student that it was made of.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.distill.tradeoff.side_by_side import take_turns
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ

from benchmarks.command import write_json
from benchmarks.timing import machine, ratios, shown, spread

SECONDS = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--json", type=Path, help="write every figure here")
    args = parser.parse_args()
    encoders = {str(path): Encoder.load(path, threads=1) for path in args.bundles}
    wave = speech_like(SECONDS * SAMPLE_RATE_HZ, seed=1)
    turns = take_turns({n: partial(one.extract, wave) for n, one in encoders.items()}, repeats=args.repeats)
    cost = {name: [seconds / SECONDS for seconds in one.processor_s] for name, one in turns.items()}
    first = next(iter(cost.values()))
    rows: list[dict[str, Any]] = []
    print("| bundle | MB | CPU s per second of audio | times faster than the first | mean cosine to its student |")
    print("|---|---|---|---|---|")
    for name, values in cost.items():
        manifest = encoders[name].manifest
        size, faster = manifest.artifact_bytes / 1e6, ratios(first, values)
        fidelity = manifest.parity["measured"]["mean_cosine"]
        rows.append({"bundle": name, "mb": size, "cpu_s": spread(values), "faster": faster, "mean_cosine": fidelity})
        median = rows[-1]["cpu_s"]["median"]
        print(f"| {Path(name).name} | {size:.1f} | {median:.4f} | {shown(faster)} | {fidelity:.4f} |")
    write_json({"machine": machine(threads=1), "seconds": SECONDS, "rows": rows}, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
