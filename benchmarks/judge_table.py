"""The judge of ``rd-latency`` on made series: false alarms, found slow-downs and what it calls unmeasured.

    python -m benchmarks.judge_table --draws 200

Prints the table of docs/devices.md and writes benchmarks/results/judge_table.json. Series are made, nothing is timed.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
from reuse_distill.devices.judge import compare
from reuse_distill.devices.series_stability import FloatArray

CHUNKS, BLOCK = 400, 8
SPREADS = (0.005, 0.01, 0.02, 0.05)
FACTOR = 1.05
RESULT = Path(__file__).parent / "results" / "judge_table.json"


def series(
    rng: np.random.Generator, *, spread: float, tail: bool = False, kind: str = "steady", factor: float = 1.0
) -> FloatArray:
    """Latencies (ms) of one run: its level differs by ``spread`` from run to run, neighbouring chunks are correlated,
    and with ``tail`` 2 to 10 % of the chunks, another share in each run, take 1.5 to 4 times as long."""
    level = 5.0 * np.exp(spread * rng.standard_normal()) * factor
    slow_noise = np.repeat(rng.standard_normal(CHUNKS // BLOCK), BLOCK)
    latency = level * np.exp(0.02 * slow_noise + 0.03 * rng.standard_normal(CHUNKS))
    if tail:
        slow = rng.random(CHUNKS) < rng.uniform(0.02, 0.10)
        latency[slow] *= rng.uniform(1.5, 4.0, slow.sum())
    if kind == "drift":
        latency *= np.linspace(1.0, 1.12, CHUNKS)
    if kind == "bimodal":
        latency *= np.where(rng.random(CHUNKS) < rng.uniform(0.2, 0.8), 1.4, 1.0)
    return np.asarray(latency, dtype=np.float64)


def row(spread: float, *, baseline: int, runs: int, tail: bool, kind: str, draws: int, seed: int) -> dict[str, object]:
    """Verdicts on unchanged runs and on runs that are 5 % slower. ``kind`` is of the candidate; bimodal of both."""
    rng = np.random.default_rng([seed, baseline, runs, int(1e4 * spread), tail])
    same, slower, visible = Counter[str](), Counter[str](), 0
    for _ in range(draws):
        of_baseline = kind if kind == "bimodal" else "steady"
        before = [series(rng, spread=spread, tail=tail, kind=of_baseline) for _ in range(baseline)]
        same[compare(before, [series(rng, spread=spread, tail=tail, kind=kind) for _ in range(runs)]).verdict] += 1
        made = [series(rng, spread=spread, tail=tail, kind=kind, factor=FACTOR) for _ in range(runs)]
        judged = compare(before, made)
        slower[judged.verdict] += 1
        visible += judged.centre is not None and judged.centre.visible <= FACTOR - 1
    return {
        "spread": spread, "tail": tail, "kind": kind, "baseline_runs": baseline, "runs": runs, "draws": draws,
        "false_alarms": same["regressed"], "same_unmeasured": same["unmeasured"], "visible": visible,
        "found": slower["regressed"], "missed": slower["pass"], "slower_unmeasured": slower["unmeasured"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    cases = [(spread, 10, runs, tail, "steady") for runs in (1, 3) for tail in (False, True) for spread in SPREADS]
    cases += [(0.01, 3, 3, False, "steady"), (0.01, 10, 3, False, "drift"), (0.01, 10, 3, False, "bimodal")]
    rows = []
    columns = (
        "runs differ by",
        "slow chunks",
        "baseline, candidate runs",
        "false alarms",
        "5 % slower: found",
        "passed",
    )
    print(f"| {' | '.join(columns)} | unmeasured |")
    print("|---|---|---|---|---|---|---|")
    for spread, baseline, runs, tail, kind in cases:
        one = row(spread, baseline=baseline, runs=runs, tail=tail, kind=kind, draws=given.draws, seed=given.seed)
        rows.append(one)
        what = ("2-10 %" if tail else "none") + ("" if kind == "steady" else f", {kind}")
        shares = [f"{100 * float(str(one[k])) / given.draws:.1f} %" for k in ("false_alarms", "found", "missed")]
        last = f"{100 * float(str(one['slower_unmeasured'])) / given.draws:.1f} %"
        print(f"| {100 * spread:g} % | {what} | {baseline}, {runs} | {' | '.join(shares)} | {last} |", flush=True)
    RESULT.write_text(json.dumps({"chunks": CHUNKS, "factor": FACTOR, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
