"""Verdicts on devices and the exit status they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reuse_distill.devices.judging.budgets import LimitCheck
from reuse_distill.devices.judging.judge import Comparison
from reuse_distill.devices.judging.series_stability import Stability
from reuse_distill.devices.measuring.measurement import Measurement

PASS, OVER, REGRESSED, UNMEASURED, UNREACHABLE = (
    "pass",
    "over budget",
    "regressed",
    "unmeasured",
    "unreachable",
)
EXIT = {PASS: 0, OVER: 1, REGRESSED: 1, UNREACHABLE: 3, UNMEASURED: 4}
# What one call reports when its devices disagree: a proven failure first, then what could not be established.
SEVERITY = (OVER, REGRESSED, UNREACHABLE, UNMEASURED, PASS)


@dataclass(frozen=True)
class EarlierRun:
    """One run of the baseline, for the history plot."""

    taken_at: str
    p10_ms: float
    p50_ms: float
    p90_ms: float


@dataclass(frozen=True)
class DeviceOutcome:
    """One device of one call."""

    device: str
    address: str  # empty for this machine
    verdict: str
    reasons: tuple[str, ...]
    measurement: Measurement | None = None
    checks: tuple[LimitCheck, ...] = ()
    comparison: Comparison | None = None
    stability: Stability | None = None
    duration_s: float = 0.0
    history: tuple[EarlierRun, ...] = ()
    repeats: tuple[Measurement, ...] = ()  # every run of the call where there was more than one
    notes: tuple[str, ...] = ()


def verdict_of(checks: Sequence[LimitCheck], comparison: Comparison | None) -> tuple[str, tuple[str, ...]]:
    """The worst of the budget's and the comparison's verdicts, with a reason for everything that is not a pass."""
    verdicts = [(check.verdict, str(check)) for check in checks]
    if comparison is not None:
        verdicts.append((comparison.verdict, comparison.reason))
    reasons = tuple(f"{verdict}: {reason}" for verdict, reason in verdicts if verdict != PASS)
    return worst([verdict for verdict, _ in verdicts]), reasons


def worst(verdicts: Sequence[str]) -> str:
    """The verdict that decides; pass when there is none to decide."""
    return next((verdict for verdict in SEVERITY if verdict in verdicts), PASS)


def exit_status(verdicts: Sequence[str]) -> int:
    """0 within budget, 1 over budget or regressed, 3 unreachable, 4 not measured."""
    return EXIT[worst(verdicts)]
