"""All figures of a trade-off as one JSON-ready record, made from the files of the points.

Which points are worth it: Pareto fronts of cost against error, and the cheapest point within a limit of loss. Published
models stand beside ours with their own figures, on SUPERB, which nothing of ours was measured on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reuse_distill.distill.evaluation.bootstrap import Interval, Scores, mean_interval
from reuse_distill.distill.tradeoff.grid import GridPoint
from reuse_distill.distill.tradeoff.point_stages import PointStages, scores
from reuse_distill.distill.tradeoff.side_by_side import ratios, smaller_and_faster, spread
from reuse_distill.report.tradeoff_plots import COSTS
from reuse_distill.runtime.untrusted_input import to_dict

PUBLISHED_NOTE = (
    "published by their authors: SUPERB overall score, parameters and GMACs of its 32 utterances; another task and "
    "other data than ours, so they have axes of their own"
)


def collected(
    stages: PointStages, failures: Mapping[str, str], times: dict[str, Any], references: dict[str, Any]
) -> dict[str, Any]:
    """Rows of all points with differences to the baseline, fronts and winners, and what they were measured on."""
    grid = stages.grid
    qualities = {point.name: stages.quality(point) for point in grid.points if point.name not in failures}
    base = qualities.get(grid.compared_with)
    turns = times["turns"]
    rows = []
    for point in grid.points:
        if point.name in failures:
            rows.append({**_described(stages, point), "status": "failed", "reason": failures[point.name], **UNMEASURED})
            continue
        quality = qualities[point.name]
        rows.append(
            {
                **_described(stages, point),
                "status": "measured",
                "reason": None,
                **stages.cost(point),
                **_artifact(stages, point),
                **_errors(quality, base),
                "cosine_to_student": quality["cosine_to_student"],
                "cosine_to_original": quality["cosine_to_original"],
                **_timing(turns[point.name], turns.get(grid.compared_with)),
                "by_length": _by_length(times["lengths"], point.name, grid.compared_with),
            }
        )
    measured = [row for row in rows if row["status"] == "measured"]
    return {
        "note": "probes on the data named here; not SUPERB",
        "name": grid.name,
        "summary": grid.summary,
        "student": grid.student,
        "baseline": grid.compared_with,
        "limit": grid.limit,
        "probes": [
            {key: one.data.facts[key] for key in ("probe", "data", "measure", "split", "train", "test")}
            for one in stages.probes
        ],
        "shares": {"train": grid.train_share, "test": grid.test_share},
        "recovery_data": grid.data,
        "timing": {
            "machine": times["machine"],
            "seconds": times["seconds"],
            "repeats": grid.repeats,
            "clock": "processor time of one thread, in turns in one process",
        },
        "points": rows,
        "smaller_and_faster": smaller_and_faster(measured, _processor_times(times["lengths"])),
        "references": {name: _errors({"probes": one}, None)["error"] for name, one in references.items()},
        "fronts": {metric: _front(measured, cost.key) for metric, cost in COSTS.items()},
        "within_limit": [row["name"] for row in within(measured, grid.limit)],
        "winners": {metric: _name(winner(measured, metric, grid.limit)) for metric in COSTS},
        "published": {"note": PUBLISHED_NOTE, "models": [dataclasses.asdict(model) for model in PUBLISHED]},
        "grid": to_dict(grid),
        "search": None,
    }


UNMEASURED = dict.fromkeys(
    (
        *("parameters", "nonzero_parameters", "superb_macs", "stream_macs_per_second", "artifact_bytes", "kind"),
        *("error", "loss", "probe_errors", "cosine_to_student", "cosine_to_original"),
        *("processor_s", "wall_s", "faster", "faster_by_the_clock", "by_length", "chunk_frames"),
    )
)


def _described(stages: PointStages, point: GridPoint) -> dict[str, Any]:
    return {
        "name": point.name,
        "method": point.method,
        "ratio": list(point.ratio),
        "schedule": point.schedule,
        "recover": stages.grid.recovery_of(point) if point.method or point.fresh is not None else 0,
        "gate_steps": point.gate_steps,
        "fresh": point.fresh,
        "student": point.student or stages.grid.student,
        "precision": stages.grid.precision_of(point),
    }


def _artifact(stages: PointStages, point: GridPoint) -> dict[str, Any]:
    manifest = stages.bundle(point).manifest
    chunk = manifest.geometry.chunk_frames if manifest.kind == "streaming" else None
    return {"artifact_bytes": manifest.artifact_bytes, "kind": manifest.kind, "chunk_frames": chunk}


def _errors(quality: dict[str, Any], base: dict[str, Any] | None) -> dict[str, Any]:
    """The mean error over the probes, that of each probe, and how far it is above the baseline on the same items."""
    parts = [scores(row) for row in quality["probes"]]
    value = {
        "error": dataclasses.asdict(mean_interval(parts)),
        "probe_errors": {
            row["probe"]: dataclasses.asdict(mean_interval([part]))
            for row, part in zip(quality["probes"], parts, strict=True)
        },
        "loss": None,
    }
    if base is not None:
        value["loss"] = dataclasses.asdict(loss_of(quality, base))
    return value


def loss_of(quality: dict[str, Any], base: dict[str, Any]) -> Interval:
    """How far the mean error over the probes is above that of ``base``, on the same items."""
    pairs = zip(quality["probes"], base["probes"], strict=True)
    return mean_interval([_difference(scores(ours), scores(theirs)) for ours, theirs in pairs])


def _difference(ours: Scores, theirs: Scores) -> Scores:
    """Item by item, how much more ``ours`` errs."""
    change = [a - b for a, b in zip(ours.numerators, theirs.numerators, strict=True)]
    return Scores(change, ours.denominators, ours.groups)


def _timing(turns: dict[str, list[float]], base: dict[str, list[float]] | None) -> dict[str, Any]:
    return {
        "processor_s": spread(turns["processor"])["median"],
        "wall_s": spread(turns["wall"])["median"],
        "faster": None if base is None else ratios(base["processor"], turns["processor"]),
        "faster_by_the_clock": None if base is None else ratios(base["wall"], turns["wall"]),
    }


def _by_length(
    lengths: Mapping[str, dict[str, dict[str, list[float]]]], name: str, base: str
) -> dict[str, dict[str, Any]]:
    """Seconds of an utterance -> the point's times for one, per second of audio."""
    return {seconds: _timing(turns[name], turns.get(base)) for seconds, turns in lengths.items()}


def _processor_times(lengths: Mapping[str, dict[str, dict[str, list[float]]]]) -> dict[str, dict[str, list[float]]]:
    return {
        seconds: {name: turns["processor"] for name, turns in of_length.items()}
        for seconds, of_length in lengths.items()
    }


def _front(rows: list[dict[str, Any]], key: str) -> list[str]:
    known = {row["name"]: row for row in rows if row[key] is not None}
    costs = {name: float(row[key]) for name, row in known.items()}
    return front(costs, {name: row["error"]["value"] for name, row in known.items()})


def _name(row: dict[str, Any] | None) -> str | None:
    return None if row is None else str(row["name"])


@dataclass(frozen=True)
class PublishedModel:
    """Figures of a paper. ``superb_gmacs``: of the 32 utterances; None where it is not published."""

    name: str
    million_parameters: float
    superb_gmacs: float | None
    superb_overall: float  # mean of the tasks' scores, errors as 100 - x
    source: str


PUBLISHED = (
    PublishedModel("HuBERT Base (teacher)", 94.70, 1669.0, 80.8, "arXiv 2106.07447"),
    PublishedModel("LightHuBERT small", 27.00, 860.7, 79.1, "arXiv 2203.15610"),
    PublishedModel("DistilHuBERT", 23.49, 785.0, 75.9, "arXiv 2110.01900"),
    PublishedModel("DPHuBERT", 23.59, 654.1, 78.9, "arXiv 2305.17651"),
    PublishedModel("MaskHuBERT", 26.64, 520.0, 77.8, "arXiv 2305.11685"),
    PublishedModel("ARMHuBERT", 26.45, 502.0, 78.1, "arXiv 2305.11685"),
    PublishedModel("ARMHuBERT-S", 22.39, 449.4, 77.5, "arXiv 2305.11685"),
    PublishedModel("STaRHuBERT", 22.31, 463.5, 79.5, "arXiv 2312.09040"),
    PublishedModel("STaRHuBERT-L", 26.63, 511.9, 79.8, "arXiv 2312.09040"),
    PublishedModel("FitHuBERT", 22.49, None, 74.5, "arXiv 2207.00555"),
)


def front(costs: Mapping[str, float], errors: Mapping[str, float]) -> list[str]:
    """Names of the points that no other one beats: none costs no more and errs no more, and is better in one.

    Cheapest first. Points that are equal in both are all on the front.
    """
    ordered = sorted(costs, key=lambda name: (costs[name], errors[name]))
    best = float("inf")
    kept: list[str] = []
    for name in ordered:
        same = bool(kept) and costs[kept[-1]] == costs[name] and errors[kept[-1]] == errors[name]
        if errors[name] < best or same:
            kept.append(name)
            best = errors[name]
    return kept


def within(rows: Sequence[dict[str, Any]], limit: float) -> list[dict[str, Any]]:
    """Points whose error rose by no more than ``limit``, by the upper end of the interval of the difference.

    The baseline is always among them.
    """
    return [row for row in rows if row["loss"] is not None and row["loss"]["high"] <= limit]


def winner(rows: Sequence[dict[str, Any]], metric: str, limit: float) -> dict[str, Any] | None:
    """The cheapest point by ``metric`` (a key of ``COSTS``) within ``limit``; None where nothing was measured.

    Equal costs: the smaller error.
    """
    key = COSTS[metric].key
    rows = [row for row in within(rows, limit) if row[key] is not None]
    return min(rows, key=lambda row: (row[key], row["error"]["value"]), default=None)
