"""The fastest artifact within a limit of quality loss, here or on a device: methods, ratios and precisions together.

For every method the ratio is halved into: a ratio whose loss stays within the limit is kept and a larger one is tried,
otherwise a smaller one. That takes for granted that more removed is never better, which holds for the processor time
by measurement at the end and for the loss up to its noise. What each method kept is then exported in every precision
and probed in it, and all that stay within the limit are timed in turns, on a device where one is named; the fastest
one is chosen. The loss is judged by the upper end of its interval, so a limit that the data cannot resolve keeps
nothing but the student itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reuse_distill.distill.evaluation.bootstrap import Interval
from reuse_distill.distill.files import FolderLock
from reuse_distill.distill.tradeoff.device_times import DeviceRuns, device_summary, device_times
from reuse_distill.distill.tradeoff.grid import GridPoint, TradeoffGrid
from reuse_distill.distill.tradeoff.point_stages import PointStages
from reuse_distill.distill.tradeoff.results import loss_of, winner
from reuse_distill.distill.tradeoff.tradeoff_run import (
    check_data,
    identity,
    measured,
    prepare,
    probe_data,
    run_point,
    write_results,
)
from reuse_distill.report.tradeoff_plots import faster_text, loss_text, points_text
from reuse_distill.runtime.errors import RdError

METHODS = ("heads", "rows", "low-rank", "heads+rows")
PRECISIONS = ("int8-dynamic", "fp32")
MOST_TRIALS = 6  # per method
UNCHANGED = "whole"


@dataclass(frozen=True)
class SearchPlan:
    """What is searched. ``trials``: ratios that are tried of each method; ``finest``: 1 / 2 ** trials apart."""

    methods: tuple[str, ...] = METHODS
    precisions: tuple[str, ...] = PRECISIONS
    trials: int = 3

    def __post_init__(self) -> None:
        for name, values in (("methods", self.methods), ("precisions", self.precisions)):
            if not values or len(set(values)) != len(values):
                raise RdError(f"{name} are {', '.join(values) or 'none'}", hint="one or more, each once")
        if not 1 <= self.trials <= MOST_TRIALS:
            raise RdError(f"--trials is {self.trials}", hint=f"ratios per method, 1 to {MOST_TRIALS}")


@dataclass
class Journal:
    """What was tried, in order, and the points that stand on the page."""

    points: list[GridPoint]
    failures: dict[str, str]
    steps: list[dict[str, str]]


def search(
    grid: TradeoffGrid,
    plan: SearchPlan,
    output: Path,
    *,
    resume: bool = False,
    device: DeviceRuns | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The results of a trade-off whose points were searched; ``search`` in them names the one chosen, and why.

    ``grid`` gives student, data, probes, recovery and limit; its points are the student itself in every precision.
    ``device``: what is within the limit is timed there too, anew on every call, and that decides. Raises RdError for
    data that is missing, another search in ``output``, a student that cannot be measured, and a device that does not
    answer (what was found until then stays, for ``resume``).
    """
    check_data(_widest(grid, plan))
    stages = PointStages(grid, output, probe_data(grid, report), report)
    with FolderLock(output) as lock:
        prepare(output, {**identity(grid, stages.probes), "search": dataclasses.asdict(plan)}, lock, resume=resume)
        journal = Journal(list(grid.points), {}, [])
        for point in grid.points:
            loss = _loss(stages, journal, point)
            if point.name == grid.compared_with and loss is None:
                raise RdError(f"the student itself cannot be measured: {journal.failures[point.name]}")
        for method in plan.methods:
            kept = _largest_ratio(stages, journal, method, plan)
            if kept is not None:
                _other_precisions(stages, journal, kept, plan)
        whole = dataclasses.replace(stages.grid, points=tuple(journal.points))
        return _finished(dataclasses.replace(stages, grid=whole), journal, plan, device)


def search_grid(student: str, plan: SearchPlan, **settings: Any) -> TradeoffGrid:
    """The grid that a search starts from: the student in every precision. The first precision is the baseline's."""
    first, *others = plan.precisions
    points = [GridPoint(UNCHANGED, precision=first), *(GridPoint(f"{UNCHANGED}-{p}", precision=p) for p in others)]
    summary = f"searched: the fastest artifact of {Path(student).name} on this machine within a limit of loss"
    return TradeoffGrid("search", summary, tuple(points), student=student, precision=first, **settings)


def _widest(grid: TradeoffGrid, plan: SearchPlan) -> TradeoffGrid:
    """A grid with a point of every method, to see that all have what they need before the first hour has passed."""
    points = [GridPoint(f"m{number}", method, (0.5,)) for number, method in enumerate(plan.methods)]
    return dataclasses.replace(grid, points=(*grid.points, *points))


def _largest_ratio(stages: PointStages, journal: Journal, method: str, plan: SearchPlan) -> GridPoint | None:
    """The largest of the ratios k / 2 ** trials that was tried and stayed within the limit."""
    low, high, kept = 0.0, 1.0, None
    for _ in range(plan.trials):
        ratio = (low + high) / 2
        point = GridPoint(point_name(method, ratio), method, (ratio,), precision=plan.precisions[0])
        journal.points.append(point)
        loss = _loss(stages, journal, point)
        if loss is not None and loss.high <= stages.grid.limit:
            low, kept = ratio, point
        else:
            high = ratio
    return kept


def _other_precisions(stages: PointStages, journal: Journal, kept: GridPoint, plan: SearchPlan) -> None:
    for precision in plan.precisions[1:]:
        point = dataclasses.replace(kept, name=f"{kept.name}-{precision}", precision=precision)
        journal.points.append(point)
        _loss(stages, journal, point)


def point_name(method: str, ratio: float) -> str:
    """``heads+rows`` and 0.375 -> ``heads+rows-0.375``."""
    return f"{method.replace(':', 'of')}-{ratio:g}"


def _loss(stages: PointStages, journal: Journal, point: GridPoint) -> Interval | None:
    """How far the point's error is above the baseline's; None where it failed. Both are put on record."""
    reason = run_point(dataclasses.replace(stages, grid=_with_point(stages.grid, point)), point)
    if reason is not None:
        journal.failures[point.name] = reason
        journal.steps.append({"name": point.name, "loss": "unmeasured", "decision": f"failed: {reason}"})
        return None
    base = next(one for one in stages.grid.points if one.name == stages.grid.compared_with)
    loss = loss_of(stages.quality(point), stages.quality(base))
    within = loss.high <= stages.grid.limit
    text = points_text(dataclasses.asdict(loss))
    journal.steps.append({"name": point.name, "loss": text, "decision": "within the limit" if within else "too much"})
    stages.report(f"{point.name}: error {text} points against {base.name}")
    return loss


def _with_point(grid: TradeoffGrid, point: GridPoint) -> TradeoffGrid:
    others: Sequence[GridPoint] = [one for one in grid.points if one.name != point.name]
    return dataclasses.replace(grid, points=(*others, point), baseline=grid.compared_with)


def _finished(stages: PointStages, journal: Journal, plan: SearchPlan, device: DeviceRuns | None) -> dict[str, Any]:
    results = measured(stages, journal.failures)
    best = winner([row for row in results["points"] if row["status"] == "measured"], "time", stages.grid.limit)
    assert best is not None  # noqa: S101  (the baseline is within its own limit)
    results["search"] = {
        "chosen": best["name"],
        "reason": reason(best, results, plan),
        "steps": journal.steps,
        "plan": dataclasses.asdict(plan),
    }
    if device is not None:
        results["search"] |= _on_device(stages, results, device)
    write_results(stages.output, results)
    return results


def _on_device(stages: PointStages, results: dict[str, Any], runs: DeviceRuns) -> dict[str, Any]:
    """What the device says of everything within the limit: fields of ``results["search"]``."""
    baseline = results["baseline"]
    names = dict.fromkeys([baseline, *results["within_limit"]])
    bundles = {name: stages.output / "points" / name / "bundle" for name in names}
    times = device_times(bundles, runs, stages.output / "device", stages.report)
    summary = device_summary(times, baseline, runs.device)
    best = summary["points"][summary["fastest"]]
    text = (
        f"On {runs.device} {summary['fastest']} is the fastest of {len(names)} within the limit: "
        f"{faster_text(best)} times as fast as {baseline}, real-time factor {best['rtf']['median']:.4f}, "
        f"{runs.rounds} runs of {runs.seconds:g} s each."
    )
    return {"chosen": summary["fastest"], "reason": f"{text} Here: {results['search']['reason']}", "device": summary}


def reason(best: dict[str, Any], results: dict[str, Any], plan: SearchPlan) -> str:
    """Why the point was chosen, in a sentence or two for the page and the terminal."""
    tried = f"{', '.join(plan.methods)} were tried, up to {plan.trials} ratios each, in {' and '.join(plan.precisions)}"
    inside = f"{len(results['within_limit'])} of {len(results['points'])} artifacts stay within the limit"
    if best["name"] == results["baseline"]:
        return f"Nothing within the limit of loss is faster than {best['name']}. {tried}; {inside}."
    doubt = "" if best["faster"]["p10"] > 1 else "; the turns do not tell them apart for certain"
    faster = f"{faster_text(best)} times as fast as {results['baseline']}{doubt}"
    return f"{best['name']} is the fastest: {faster}, error {loss_text(best)} points. {tried}; {inside}."
