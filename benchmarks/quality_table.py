"""From the outcomes of a probe over several seeds to means, intervals and paired differences, and their table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from reuse_distill.distill.evaluation.bootstrap import Interval, difference_interval, ratio_interval
from reuse_distill.distill.evaluation.evaluate import Outcome, ProbeOutcomes

REFERENCE = "masking"  # what the others are compared with


def summary(probed: ProbeOutcomes) -> dict[str, Any]:
    """One probe as JSON-ready data: every source with the mean over its seeds and its interval over test items."""
    grouped: dict[str, list[Outcome]] = {}
    for outcome in probed.outcomes:
        grouped.setdefault(outcome.source.partition("/")[0], []).append(outcome)
    means = {name: _mean(outcomes) for name, outcomes in grouped.items()}
    reference = means.get(REFERENCE)
    rows = []
    for name, outcomes in grouped.items():
        bottom = outcomes[0].denominators
        row: dict[str, Any] = {
            "source": name,
            **dataclasses.asdict(ratio_interval(means[name], bottom, groups=probed.groups)),
            "by_seed": [sum(one.numerators) / sum(one.denominators) for one in outcomes],
            "layer_weights": np.mean([one.layer_weights for one in outcomes], axis=0).round(3).tolist(),
        }
        if reference is not None and name != REFERENCE:
            change = difference_interval(reference, means[name], bottom, groups=probed.groups)
            row["masking_minus_this"] = dataclasses.asdict(change)
        rows.append(row)
    return {**probed.facts, "results": rows}


def differences(probed: ProbeOutcomes, first: str, second: str) -> dict[str, float]:
    """``first`` minus ``second`` on the same test items, with its interval."""
    found = {outcome.source: outcome for outcome in probed.outcomes}
    one, other = found[first], found[second]
    return dataclasses.asdict(
        difference_interval(one.numerators, other.numerators, one.denominators, groups=probed.groups)
    )


def _mean(outcomes: Sequence[Outcome]) -> list[float]:
    """Per test item the mean over seeds."""
    return np.mean([one.numerators for one in outcomes], axis=0).tolist()


def markdown(results: dict[str, Any]) -> str:
    """One table of values, one of differences: sources down, probes across."""
    probes = results["probes"]
    heads = [f"{one['data']} ({one['measure']})" for one in probes]
    names = [row["source"] for row in probes[0]["results"]]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for index, name in enumerate(names):
        lines.append(f"| {name} | {' | '.join(_value(one['results'][index]) for one in probes)} |")
    lines += ["", f"| masking - | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for index, name in enumerate(names):
        if name != REFERENCE:
            lines.append(f"| {name} | {' | '.join(_change(one['results'][index]) for one in probes)} |")
    return "\n".join(lines)


def _value(row: dict[str, Any]) -> str:
    seeds = row["by_seed"]
    spread = f", seeds {min(seeds):.3f}-{max(seeds):.3f}" if len(seeds) > 1 else ""
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]{spread}"


def _change(row: dict[str, Any]) -> str:
    change = Interval(**row["masking_minus_this"])
    return f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
