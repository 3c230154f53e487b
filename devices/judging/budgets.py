"""Budgets: limits with units, per device, bundle kind, precision, mode and number of streams.

p99 = "40 ms"                 # for every measurement
[[budget]]                    # and closer ones; the entry with the most matching selectors wins, limit by limit
device = "jetson-orin-nano"
precision = "int8"
p99 = "12 ms"
deadline_misses = "0"
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reuse_distill.devices.device_profiles import read_toml
from reuse_distill.devices.judging.confidence import PERCENTILES, too_short
from reuse_distill.devices.measuring.measurement import METRICS, UTTERANCE_LENGTHS_S, UTTERANCES, Measurement
from reuse_distill.report.quantities import parse_quantity, quantity
from reuse_distill.runtime.errors import RdError, nearest

MANY_TIMES = 10  # of the limit: percent say little
FROM_SENSORS = ("energy_per_second", "power", "temperature")
SELECTORS: dict[str, type] = {"device": str, "kind": str, "precision": str, "mode": str, "streams": int}


@dataclass(frozen=True)
class BudgetEntry:
    """Limits (in base units) and what they apply to."""

    selectors: dict[str, Any]
    limits: dict[str, float]

    def matches(self, facts: dict[str, Any]) -> bool:
        return all(facts[name] == value for name, value in self.selectors.items())


@dataclass(frozen=True)
class LimitCheck:
    """One limit against one number."""

    metric: str
    limit: float
    value: float | None
    verdict: str  # pass | over budget | unmeasured
    lacking: str = ""  # what would measure it

    def __str__(self) -> str:
        dimension = METRICS[self.metric].dimension
        text = (
            f"{METRICS[self.metric].title} {quantity(self.value, dimension)}, limit {quantity(self.limit, dimension)}"
        )
        if self.verdict != "over budget" or self.value is None:
            return f"{text}; {self.lacking}" if self.lacking else text
        if not self.limit:
            return text
        times = self.value / self.limit
        return f"{text} (+{100 * (times - 1):.1f} %)" if times < MANY_TIMES else f"{text} ({times:,.0f} times)"


@dataclass(frozen=True)
class Budget:
    """A whole budget file."""

    path: str
    entries: tuple[BudgetEntry, ...]

    def limits(self, facts: dict[str, Any]) -> dict[str, float]:
        """The limits that apply; closer entries override wider ones, later ones override earlier ones."""
        matching = sorted((e for e in self.entries if e.matches(facts)), key=lambda e: len(e.selectors))
        return {name: limit for entry in matching for name, limit in entry.limits.items()}

    def check(self, measurement: Measurement, *, device: str) -> tuple[LimitCheck, ...]:
        """Every limit that applies against what was measured. Raises RdError where none applies."""
        facts = {
            "device": device,
            "kind": measurement.bundle.kind,
            "precision": measurement.bundle.precision,
            "mode": measurement.request.mode,
            "streams": measurement.request.streams,
        }
        return tuple(_check(name, limit, measurement) for name, limit in self.limits(facts).items())


def _check(metric: str, limit: float, measurement: Measurement) -> LimitCheck:
    value = measurement.metrics.get(metric)
    verdict = "unmeasured" if value is None else "pass" if value <= limit else "over budget"
    return LimitCheck(metric, limit, value, verdict, _lacking(metric, measurement) if value is None else "")


def _lacking(metric: str, measurement: Measurement) -> str:
    """What would measure a metric: audio for a percentile, a sensor; empty for others."""
    if metric in FROM_SENSORS:
        what = "temperature" if metric == "temperature" else "energy"
        return f"this device tells no {what} (docs/devices.md says which do)"
    if metric not in PERCENTILES:
        return ""
    whole = measurement.request.mode == UTTERANCES
    period_s = sum(UTTERANCE_LENGTHS_S) if whole else measurement.period_ms / 1000
    samples, streams = sum(len(one.at_s) for one in measurement.samples), len(measurement.samples)
    return too_short([metric], samples, period_s=period_s, streams=streams)


def read_budget(path: Path) -> Budget:
    """Read a budget file. Raises RdError for an unknown key, a limit without a unit, or a file without limits."""
    data = read_toml(path, what="budget")
    tables = data.pop("budget", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise RdError(f"{path}: budget is written as [[budget]], with two brackets")
    entries = [_entry(data, where=str(path), selectable=False)] if data else []
    entries += [_entry(table, where=f"{path}: budget {i}", selectable=True) for i, table in enumerate(tables, 1)]
    if not any(entry.limits for entry in entries):
        raise RdError(f"{path}: holds no limit, so nothing could fail", hint='write for example p99 = "40 ms"')
    return Budget(str(path), tuple(entries))


def _entry(table: dict[str, Any], *, where: str, selectable: bool) -> BudgetEntry:
    selectors, limits = {}, {}
    for key, value in table.items():
        if key in METRICS:
            if isinstance(value, dict):  # `p99.9 = …` is a table p99 with a key 9
                raise RdError(f"{where}: {key} is a table", hint='the 99.9th percentile is written p999 = "60 ms"')
            limits[key] = parse_quantity(value, METRICS[key].dimension, where=f"{where}: {key}")
        elif key in SELECTORS and selectable:
            if type(value) is not SELECTORS[key]:
                raise RdError(f"{where}: {key} {value!r}: expected {SELECTORS[key].__name__}")
            selectors[key] = value
        elif key in SELECTORS:
            raise RdError(
                f"{where}: {key} selects nothing here",
                hint="put it under [[budget]] together with its limits",
            )
        else:
            raise RdError(f"{where}: unknown key {key!r}", hint=nearest(key, [*METRICS, *SELECTORS]))
    return BudgetEntry(selectors, limits)
