"""Timing in turns: contenders alternate in one process, so that a slow spell of the machine slows all of them.

Is smaller always faster? Pairs of artifacts of one precision: one costs less by a count, which one by the clock?
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

Spread = dict[str, float]
LENGTHS_S = (2, 5, 10)  # of utterances that are timed one by one
COUNTS = {"parameters": "nonzero_parameters", "MACs": "superb_macs", "file size": "artifact_bytes"}
SMALLER = 0.95  # times the other's count, at most: what differs by less is not called smaller
NAMED = 3  # exceptions that are named


@dataclass(frozen=True)
class Turns:
    """Seconds of every call of one contender: of the clock, and of this process's processor time."""

    wall_s: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)


def take_turns(
    contenders: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 1, seed: int = 0
) -> dict[str, Turns]:
    """Every contender called ``repeats`` times after ``warmup`` rounds; the order within a round is drawn anew.

    Processor time leaves out what other processes take; with one thread it is the time on an idle machine.
    """
    order, turns = np.random.default_rng(seed), {name: Turns() for name in contenders}
    names = list(contenders)
    for number in range(warmup + repeats):
        for index in order.permutation(len(names)):
            name = names[index]
            wall, processor = time.perf_counter(), time.process_time()
            contenders[name]()
            spent = time.perf_counter() - wall, time.process_time() - processor
            if number >= warmup:
                turns[name].wall_s.append(spent[0])
                turns[name].processor_s.append(spent[1])
    return turns


def spread(values: Sequence[float]) -> Spread:
    """Median and the 10th and 90th percentile."""
    ordered = sorted(values)
    tenth = max(0, round(0.1 * (len(ordered) - 1)))
    return {"median": statistics.median(ordered), "p10": ordered[tenth], "p90": ordered[-1 - tenth]}


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times ``fast`` is faster, turn by turn."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def machine(threads: int) -> dict[str, Any]:
    """What a figure has to be read with."""
    packages = ("torch", "onnxruntime", "numpy", "transformers")
    return {
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": threads,
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    extra = " with AVX512-VNNI" if "avx512_vnni" in flags else ""
    return (names[0] if names else "unknown") + extra


def smaller_and_faster(
    rows: Sequence[Mapping[str, Any]], turns: Mapping[str, Mapping[str, Sequence[float]]]
) -> list[dict[str, Any]]:
    """Of every precision and count: how many pairs there are of which one is smaller, and of how many it is faster.

    ``turns``: seconds of an utterance -> point -> seconds of every turn. Faster: in nine of ten turns. ``exceptions``
    names pairs (smaller, larger) of which the smaller one is not faster at any length, those that differ most first.
    """
    compared = []
    for precision in dict.fromkeys(row["precision"] for row in rows):
        same = [row for row in rows if row["precision"] == precision]
        for count, key in COUNTS.items():
            pairs = [(a, b) for a, b in permutations(same, 2) if a[key] <= SMALLER * b[key]]
            if not pairs:
                continue
            pairs.sort(key=lambda pair: pair[0][key] / pair[1][key])
            names = [(str(a["name"]), str(b["name"])) for a, b in pairs]
            faster = {
                seconds: [pair for pair in names if _is_faster(*(of_length[name] for name in pair))]
                for seconds, of_length in turns.items()
            }
            never = [list(pair) for pair in names if not any(pair in some for some in faster.values())]
            compared.append(
                {
                    "precision": precision,
                    "count": count,
                    "pairs": len(names),
                    "faster": {seconds: len(some) for seconds, some in faster.items()},
                    "exceptions": never[:NAMED],
                }
            )
    return compared


def _is_faster(smaller: Sequence[float], larger: Sequence[float]) -> bool:
    return ratios(larger, smaller)["p10"] > 1
