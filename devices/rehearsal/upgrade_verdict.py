"""The verdict on an upgrade: safe, slower, different or broken, and unmeasured where safe cannot be said.

Latency is compared in pairs of runs taken in turns (from, to, to, from, …): what the machine does to both cancels, and
the differences of the pairs tell how much pairs differ without a cause (Student t at the judge's false-alarm rate).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from reuse_distill.devices.judging.baselines import series_of
from reuse_distill.devices.judging.judge import ALPHA_CENTRE, Effect, Sensitivity, log_median, sampling_error, t_effect
from reuse_distill.devices.measuring.measurement import METRICS, Measurement
from reuse_distill.devices.rehearsal.differences import KernelDifference, OutputDifference
from reuse_distill.devices.rehearsal.probe import SideProbe
from reuse_distill.report.quantities import quantity

SAFE, SLOWER, DIFFERENT, BROKEN, UNMEASURED = "safe", "slower", "different", "broken", "unmeasured"
SEVERITY = (BROKEN, DIFFERENT, SLOWER, UNMEASURED, SAFE)
EXIT = {SAFE: 0, SLOWER: 1, DIFFERENT: 1, BROKEN: 1, UNMEASURED: 4}
NOTED = ""  # shown, not judged
SHOWN_TIMES = ("p90", "p99", "first_frame", "load")
MEMORY_SHARE, MEMORY_BYTES = 0.10, 5e6


@dataclass(frozen=True)
class Aspect:
    """One thing that was compared."""

    name: str
    before: str
    after: str
    verdict: str  # empty: shown, not judged
    reason: str = ""


def worst(aspects: Sequence[Aspect]) -> str:
    """The verdict that decides."""
    return next((verdict for verdict in SEVERITY if any(one.verdict == verdict for one in aspects)), UNMEASURED)


def judge_probes(
    before: SideProbe,
    after: SideProbe,
    outputs: Sequence[OutputDifference],
    kernels: KernelDifference,
    *,
    tolerance: float,
) -> list[Aspect]:
    """Everything but time and memory."""
    return [
        Aspect("file accepted", "yes", "yes", SAFE),
        _same("provider", before.provider, after.provider),
        _selftest(before, after),
        _features(outputs, tolerance=tolerance),
        *_kernels(before, after, kernels),
    ]


def _same(name: str, before: str, after: str) -> Aspect:
    reason = "" if before == after else f"{name} was {before}, is {after}"
    return Aspect(name, before, after, DIFFERENT if reason else SAFE, reason)


def _selftest(before: SideProbe, after: SideProbe) -> Aspect:
    if before.selftest_passed is None or after.selftest_passed is None:
        return Aspect("self-test", before.selftest, after.selftest, UNMEASURED, "the bundle states no bound")
    verdict, reason = SAFE, ""
    if not after.selftest_passed:
        already = "" if before.selftest_passed else "; it failed before the upgrade as well"
        verdict, reason = BROKEN, f"features are outside the bound that the bundle states{already}"
    elif not before.selftest_passed:
        reason = "it failed before the upgrade"
    return Aspect("self-test", before.selftest, after.selftest, verdict, reason)


def _features(outputs: Sequence[OutputDifference], *, tolerance: float) -> Aspect:
    if not outputs:
        return Aspect("features", "none", "none", UNMEASURED, "no output was compared")
    defect = next((one for one in outputs if one.relative == math.inf), None)
    largest = max(outputs, key=lambda one: one.relative)
    reference = f"{len(outputs)} outputs of {len({one.recording for one in outputs})} recordings"
    if defect is not None:
        reason = f"{defect.output} of {defect.recording}: {defect.defect}"
        return Aspect("features", reference, defect.defect, BROKEN, reason)
    if all(one.identical for one in outputs):
        return Aspect("features", reference, "identical in every bit", SAFE)
    text = f"differ by up to {100 * largest.relative:.3g} % ({largest.output}, {largest.recording})"
    over = largest.relative > tolerance
    limit = f"{text}; {100 * tolerance:g} % is the tolerance"
    return Aspect("features", reference, text, DIFFERENT if over else SAFE, limit if over else "")


def _kernels(before: SideProbe, after: SideProbe, kernels: KernelDifference) -> list[Aspect]:
    if not before.nodes or not after.nodes:
        why = before.nodes_unmeasured or after.nodes_unmeasured or "the engine lists no nodes"
        return [Aspect("precision used", UNMEASURED, UNMEASURED, NOTED, why)]
    was, now = _counts(kernels.precision_from), _counts(kernels.precision_to)
    changed = f"computing nodes run in {now}, before in {was}" if was != now else ""
    here, there = kernels.placement_from, kernels.placement_to
    elsewhere = set(here) != set(there) or any(" on " in one and _provider_changed(one) for one in kernels.moved)
    moved = f"nodes by provider were {_counts(here)}, are {_counts(there)}" if elsewhere else ""
    return [
        Aspect("precision used", was, now, DIFFERENT if changed else SAFE, changed),
        Aspect("placement", _counts(here), _counts(there), DIFFERENT if moved else SAFE, moved),
        Aspect("nodes after optimisation", str(len(before.nodes)), str(len(after.nodes)), NOTED),
    ]


def _provider_changed(text: str) -> bool:
    was, _, now = text.partition(", now ")
    return was.rsplit(" on ", 1)[-1] != now.rsplit(" on ", 1)[-1]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def judge_cost(
    before: Sequence[Measurement], after: Sequence[Measurement], *, detect: float
) -> tuple[list[Aspect], Effect]:
    """Latency and memory, and what is shown beside them."""
    effect = paired_effect(before, after)
    aspects = [_latency(before, after, effect, detect=detect), _cpu_time(before, after), _memory(before, after)]
    for name in SHOWN_TIMES:
        was, now = (quantity(_median(runs, name), "time") for runs in (before, after))
        aspects.append(Aspect(METRICS[name].title, was, now, NOTED))
    return aspects, effect


def paired_effect(before: Sequence[Measurement], after: Sequence[Measurement]) -> Effect:
    """The change of the median latency from the pairs' log ratios. Needs two pairs."""
    pairs = [(series_of(a), series_of(b)) for a, b in zip(before, after, strict=True)]
    ratios = [log_median(b) - log_median(a) for a, b in pairs]
    noise = float(np.mean([math.hypot(sampling_error(a), sampling_error(b)) for a, b in pairs]))
    level = math.exp(float(np.mean([log_median(a) for a, _ in pairs])))
    return effect_of(ratios, level_ms=level, noise=noise)


def effect_of(ratios: Sequence[float], *, level_ms: float, noise: float = 0.0) -> Effect:
    """The mean of log ratios with its t interval; ``noise`` is what a ratio is unsure of at least."""
    k, shift, limits = len(ratios), float(np.mean(ratios)), Sensitivity()
    return t_effect(
        shift,
        max(float(np.std(ratios, ddof=1)), noise, 1e-6),
        1 / math.sqrt(k),
        freedom=k - 1,
        alpha=ALPHA_CENTRE,
        least=limits.relative,
        absolute_ms=level_ms * math.expm1(shift),
        least_ms=limits.absolute_ms,
    )


def _cpu_time(before: Sequence[Measurement], after: Sequence[Measurement]) -> Aspect:
    """CPU time per second of audio: other processes lengthen it far less than they lengthen latencies, so that it shows
    a slow-down on a busy machine. Not judged safe by itself: an accelerator's time is not in it."""
    was, now = ([one.metrics.get("cpu_rtf") for one in runs] for runs in (before, after))
    known = [(a, b) for a, b in zip(was, now, strict=True) if a and b]
    texts = quantity(_median(before, "cpu_rtf"), "ratio"), quantity(_median(after, "cpu_rtf"), "ratio")
    title = METRICS["cpu_rtf"].title
    if len(known) < len(was):
        return Aspect(title, *texts, NOTED)
    effect = effect_of([math.log(b / a) for a, b in known], level_ms=1000 * float(np.mean([a for a, _ in known])))
    return Aspect(title, *texts, SLOWER if effect.regressed else NOTED, str(effect))


def _latency(before: Sequence[Measurement], after: Sequence[Measurement], effect: Effect, *, detect: float) -> Aspect:
    was, now = (quantity(_median(runs, "p50"), "time") for runs in (before, after))
    if effect.regressed:
        return Aspect("latency p50", was, now, SLOWER, str(effect))
    if effect.high <= 1 + detect:  # a slow-down of that size is outside the interval, whatever its cause
        return Aspect("latency p50", was, now, SAFE, str(effect))
    more = "more pairs (--runs) on a quiet machine show less"
    return Aspect(
        "latency p50",
        was,
        now,
        UNMEASURED,
        f"up to {100 * (effect.high - 1):.0f} % slower is possible: {effect}; {more}",
    )


def _memory(before: Sequence[Measurement], after: Sequence[Measurement]) -> Aspect:
    was, now = _median(before, "peak_memory"), _median(after, "peak_memory")
    texts = quantity(was, "bytes"), quantity(now, "bytes")
    if was is None or now is None:
        return Aspect("peak memory", *texts, NOTED, "the system does not tell")
    more = now - was > max(MEMORY_BYTES, MEMORY_SHARE * was)
    reason = f"peak memory {100 * (now / was - 1):+.0f} %" if more else ""
    return Aspect("peak memory", *texts, SLOWER if more else SAFE, reason)


def _median(runs: Sequence[Measurement], name: str) -> float | None:
    values = [value for one in runs if (value := one.metrics.get(name)) is not None]
    return float(np.median(values)) if values else None
