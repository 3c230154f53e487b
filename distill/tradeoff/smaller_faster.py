"""Is smaller always faster? Pairs of artifacts of one precision: one costs less by a count, which one by the clock?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

from reuse_distill.distill.tradeoff.side_by_side import ratios

COUNTS = {"parameters": "nonzero_parameters", "MACs": "superb_macs", "file size": "artifact_bytes"}
SMALLER = 0.95  # times the other's count, at most: what differs by less is not called smaller
NAMED = 3  # exceptions that are named


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
