"""The judge of ``rd-latency`` on made series: false alarms, found slow-downs and what it calls unmeasured.

    python -m benchmarks.judge_table --draws 600

Prints the table of docs/devices.md, checks it against what is promised there, and writes
benchmarks/results/judge_table.json. Series are made, nothing is timed. Exit status 1 where a promise does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from reuse_distill.devices.judging.judge import Sensitivity, compare
from reuse_distill.devices.judging.series_stability import FloatArray

CHUNKS, BLOCK = 400, 8
SPREADS = (0.005, 0.01, 0.02, 0.05)
FACTOR = 1.05
MOST_FALSE_ALARMS, LEAST_FOUND = 0.01, 0.95  # shares of verdicts, and of slow-downs that the A/A figure calls visible
KINDS = {
    "steady": "",
    "drift": "drift of +12 % in the candidate",
    "wander": "levels wander, 0.3 % a run",
    "bimodal": "bimodal candidate",
    "bimodal both": "bimodal, accepted by name",
}
RESULT = Path(__file__).parent / "results" / "judge_table.json"


@dataclass(frozen=True)
class Case:
    """One row: how series are made, and how many runs are compared."""

    spread: float  # standard deviation of a run's level, relative
    baseline: int
    runs: int
    tail: bool = False
    kind: str = "steady"

    @property
    def title(self) -> str:
        return KINDS[self.kind] or ("2-10 % of chunks slow" if self.tail else "steady")


@dataclass
class Row:
    """Verdicts of a case: on unchanged runs, and on runs that are 5 % slower."""

    case: Case
    draws: int = 0
    false_alarms: int = 0
    unchanged_passed: int = 0
    found: int = 0
    passed: int = 0  # 5 % slower and passed
    visible: int = 0  # draws whose A/A figure says that 5 % can be seen
    visible_found: int = 0

    def __str__(self) -> str:
        shares = (self.false_alarms, self.unchanged_passed, self.found, self.passed, self.visible)
        of_visible = f"{self.visible_found} of {self.visible}" if self.visible else "none visible"
        cells = [f"{100 * self.case.spread:g} %", self.case.title, f"{self.case.baseline}, {self.case.runs}"]
        return f"| {' | '.join([*cells, *(f'{100 * one / self.draws:.1f} %' for one in shares), of_visible])} |"


def cases() -> list[Case]:
    """Every row of the table."""
    plain = [Case(spread, 10, runs, tail) for runs in (1, 3) for tail in (False, True) for spread in SPREADS]
    small = [Case(0.005, 3, 3), Case(0.01, 3, 3), Case(0.01, 5, 3), Case(0.01, 12, 5, True)]
    shapes = [Case(spread, 10, 3, False, kind) for kind in KINDS if kind != "steady" for spread in (0.005, 0.01)]
    return [*plain, *small, *shapes]


def series(rng: np.random.Generator, level: float, *, tail: bool, kind: str) -> FloatArray:
    """Latencies (ms) of one run around ``level``: neighbouring chunks are correlated, and with ``tail`` 2 to 10 % of
    the chunks, another share in each run, take 1.5 to 4 times as long."""
    slow_noise = np.repeat(rng.standard_normal(CHUNKS // BLOCK), BLOCK)
    latency = level * np.exp(0.02 * slow_noise + 0.03 * rng.standard_normal(CHUNKS))
    if tail:
        slow = rng.random(CHUNKS) < rng.uniform(0.02, 0.10)
        latency[slow] *= rng.uniform(1.5, 4.0, slow.sum())
    if kind == "drift":
        latency *= np.linspace(1.0, 1.12, CHUNKS)
    if kind.startswith("bimodal"):
        latency *= np.where(rng.random(CHUNKS) < rng.uniform(0.2, 0.8), 1.4, 1.0)
    return np.asarray(latency, dtype=np.float64)


def levels(rng: np.random.Generator, case: Case) -> FloatArray:
    """Levels (ms) of the baseline's runs, then of the candidate's."""
    count = case.baseline + case.runs
    logs = case.spread * rng.standard_normal(count)
    if case.kind == "wander":
        logs += 0.003 * np.cumsum(rng.standard_normal(count))
    return np.asarray(5.0 * np.exp(logs))


def row(case: Case, *, draws: int, seed: int) -> Row:
    """Judge ``draws`` candidates of the case without a change and as many that are 5 % slower."""
    rng = np.random.default_rng([seed, case.baseline, case.runs, int(1e4 * case.spread), case.tail, len(case.kind)])
    limits = Sensitivity(accepted=("bimodal",) if case.kind == "bimodal both" else ())
    of_baseline = case.kind if case.kind == "bimodal both" else "steady"
    result = Row(case)
    for _ in range(draws):
        made = levels(rng, case)
        before = [series(rng, one, tail=case.tail, kind=of_baseline) for one in made[: case.baseline]]
        after = [series(rng, one, tail=case.tail, kind=case.kind) for one in made[case.baseline :]]
        same = compare(before, after, sensitivity=limits)
        slower = compare(before, [FACTOR * one for one in after], sensitivity=limits)
        seen = slower.centre is not None and slower.centre.visible <= FACTOR - 1
        result.draws += 1
        result.false_alarms += same.verdict == "regressed"
        result.unchanged_passed += same.verdict == "pass"
        result.found += slower.verdict == "regressed"
        result.passed += slower.verdict == "pass"
        result.visible += seen
        result.visible_found += seen and slower.verdict == "regressed"
    return result


def broken_promises(rows: Sequence[Row]) -> list[str]:
    """What does not hold: false alarms over all rows and in each (three standard errors allowed), slow-downs found.

    Of series that cannot be compared (drift, bimodal) the A/A figure promises nothing: they are unmeasured.
    """
    broken = []
    for one in rows:
        allowed = MOST_FALSE_ALARMS * one.draws
        if one.false_alarms > allowed + 3 * max(1.0, allowed) ** 0.5:
            broken.append(f"{one.case}: {one.false_alarms} false alarms of {one.draws}")
    alarms, draws = sum(one.false_alarms for one in rows), sum(one.draws for one in rows)
    if alarms > MOST_FALSE_ALARMS * draws:
        broken.append(f"{alarms} false alarms of {draws}")
    steady = [one for one in rows if one.case.kind in ("steady", "wander", "bimodal both")]
    visible, found = sum(one.visible for one in steady), sum(one.visible_found for one in steady)
    if found < LEAST_FOUND * visible:
        broken.append(f"{found} of {visible} visible slow-downs found")
    return broken


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args(argv)
    columns = (
        "runs differ by", "series", "baseline, candidate runs", "false alarms", "unchanged: passed",
        "5 % slower: found", "passed", "visible", "found of the visible",
    )  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    rows = []
    for case in cases():
        rows.append(row(case, draws=given.draws, seed=given.seed))
        print(rows[-1], flush=True)
    broken = broken_promises(rows)
    alarms, draws = sum(one.false_alarms for one in rows), sum(one.draws for one in rows)
    print(f"\n{alarms} false alarms of {draws} verdicts; promises: {'; '.join(broken) or 'all hold'}")
    document = {"chunks": CHUNKS, "factor": FACTOR, "rows": [asdict(one) for one in rows], "broken": broken}
    given.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
