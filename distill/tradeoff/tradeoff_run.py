"""A trade-off: all points of a grid, stage by stage, then their artifacts timed in turns, then the page.

OUTPUT/grid.json       what is compared; compared itself on --resume
OUTPUT/students/, OUTPUT/points/   see point_stages
OUTPUT/times.json      seconds of every turn
OUTPUT/tradeoff.json   every figure
OUTPUT/tradeoff.html   the page; tradeoff.svg and tradeoff.md: its plots and its table
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.distill.compress.compress_run import open_student
from reuse_distill.distill.compress.methods import BY_DATA
from reuse_distill.distill.data.utterances import find_utterances, fingerprint
from reuse_distill.distill.evaluation.evaluate import labelled_data, probe_of, thinned
from reuse_distill.distill.evaluation.features import of_log_mel
from reuse_distill.distill.files import FolderLock, check_writable, read_json, write_atomically, write_json
from reuse_distill.distill.recipe import difference
from reuse_distill.distill.tradeoff.grid import GridPoint, TradeoffGrid
from reuse_distill.distill.tradeoff.point_stages import PointStages, ProbeData, find_student, probed
from reuse_distill.distill.tradeoff.results import collected
from reuse_distill.distill.tradeoff.side_by_side import LENGTHS_S, machine, take_turns
from reuse_distill.report.tradeoff_page import tradeoff_page
from reuse_distill.report.tradeoff_plots import tradeoff_picture, tradeoff_table
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.runtime.geometry import SAMPLE_RATE_HZ
from reuse_distill.runtime.untrusted_input import to_dict
from reuse_distill.student.checkpoints.checkpoint import state_sha256

Report = Callable[[str], None]
NOT_RUN = "not run: --points left it out"
GRID, TIMES, RESULTS, PAGE = "grid.json", "times.json", "tradeoff.json", "tradeoff.html"
PICTURE, TABLE = "tradeoff.svg", "tradeoff.md"


def run_tradeoff(
    grid: TradeoffGrid,
    output: Path,
    *,
    resume: bool = False,
    only: Sequence[str] = (),
    page: bool = True,
    report: Report = print,
) -> dict[str, Any] | None:
    """Everything that is not there yet; the results. ``only``: these points, and without ``page``
    neither timing nor page (the result is None).

    A point that fails is part of the results, with its reason; ``resume`` tries it again. Raises RdError for data that
    is missing and an output folder of another grid.
    """
    points = chosen(grid, only)
    check_data(grid)
    stages = PointStages(grid, output, probe_data(grid, report), report)
    with FolderLock(output) as lock:
        prepare(output, identity(grid, stages.probes), lock, resume=resume)
        failures = {point.name: run_point(stages, point) for point in points}
        if only and not page:
            return None
        failures |= {point.name: NOT_RUN for point in grid.points if point not in points}
        results = measured(stages, {name: reason for name, reason in failures.items() if reason})
        write_results(output, results)
        return results


def measured(stages: PointStages, failures: dict[str, str]) -> dict[str, Any]:
    """All figures of the points: their artifacts are timed in turns now, where they were not yet."""
    references = reference_probes(stages)
    times = timed(stages, [point for point in stages.grid.points if point.name not in failures])
    return collected(stages, failures, times, references)


def write_results(output: Path, results: dict[str, Any]) -> None:
    """The figures as JSON, and the page."""
    write_json(output / RESULTS, results)
    write_atomically(output / PAGE, tradeoff_page(results).encode())
    write_atomically(output / PICTURE, tradeoff_picture(results).encode())
    write_atomically(output / TABLE, tradeoff_table(results).encode())


def chosen(grid: TradeoffGrid, only: Sequence[str]) -> tuple[GridPoint, ...]:
    """The points named; all of them where none is."""
    for name in only:
        if name not in grid.names:
            raise RdError(f"{grid.name} has no point {name!r}", hint=nearest(name, grid.names))
    return tuple(point for point in grid.points if not only or point.name in only)


def check_data(grid: TradeoffGrid) -> None:
    """Raises RdError where a point needs audio or a probe needs data that nobody named."""
    if not grid.probes:
        raise RdError(f"{grid.name} has no data to probe on", hint="--probe label=MANIFEST, as rd-distill evaluate")
    for text in grid.probes:
        if not probe_of(text).data.exists():
            raise RdError(f"there is no probe data at {probe_of(text).data}", hint="--probe label=MANIFEST")
    find_student(grid.student)
    needing = [
        point.name
        for point in grid.points
        if set(point.methods) & set(BY_DATA)
        or ((point.method or point.fresh is not None) and grid.recovery_of(point))
        or point.gate_steps
        or grid.precision_of(point) == "int8"
    ]
    if needing and grid.data is None:
        raise RdError(f"point {needing[0]!r} needs audio to recover, to score or to calibrate on", hint="--data AUDIO")
    if grid.data is not None and not Path(grid.data).exists():
        raise RdError(f"there is no audio at {grid.data}", hint="--data: a folder of audio or a manifest CSV")


def probe_data(grid: TradeoffGrid, report: Report) -> tuple[ProbeData, ...]:
    """The probes' utterances and splits, thinned as the grid says. Raises RdError for data without labels."""
    probes = []
    for text in grid.probes:
        probe = probe_of(text)
        data = labelled_data(probe, seed=grid.seed, report=report)
        shares = {"train_share": grid.train_share, "test_share": grid.test_share}
        probes.append(ProbeData(probe, thinned(data, **shares, seed=grid.seed)))
    return tuple(probes)


def identity(grid: TradeoffGrid, probes: Sequence[ProbeData]) -> dict[str, Any]:
    """What a trade-off is; two of the same identity have the same points."""
    students = {grid.student, *(point.student for point in grid.points if point.student is not None)}
    return {
        "grid": {**to_dict(grid), "points": {point.name: to_dict(point) for point in grid.points}},
        "students": {name: _weights_of(name) for name in sorted(students)},
        "data": None if grid.data is None else fingerprint(find_utterances(grid.data, bad_limit=0.05)),
        "probes": [one.data.facts for one in probes],
    }


def _weights_of(name: str) -> str | None:
    """None where there is no such student: its point fails and says so."""
    try:
        return state_sha256(open_student(find_student(name)).state_dict())
    except RdError:
        return None


def prepare(output: Path, identity: dict[str, Any], lock: FolderLock, *, resume: bool) -> None:
    """Take the folder for this trade-off. Raises RdError where another one is in it."""
    file = output / GRID
    if file.exists() and not resume:
        raise RdError(f"{output} already holds a trade-off", hint="continue with --resume, or another folder")
    if resume and not file.exists():
        raise RdError(f"{output} holds no trade-off to resume", hint="leave --resume out to start one")
    check_writable(output)
    lock.take()
    if not file.exists():
        write_json(file, identity)
        return
    stored = read_json(file)
    changes = difference(stored if isinstance(stored, dict) else {}, json.loads(json.dumps(identity)))
    if changes:
        raise RdError(
            f"{output} is another trade-off: " + "; ".join(changes[:5]),
            hint="resume with the grid, student and data that it was started with",
        )


def run_point(stages: PointStages, point: GridPoint) -> str | None:
    """All stages of one point; None, or why it failed. Whatever goes wrong in a point is the point's own failure."""
    stages.report(f"{point.name}: {stages.grid.names.index(point.name) + 1} of {len(stages.grid.points)}")
    calls = {
        "compression": stages.checkpoint,
        "counting": stages.cost,
        "export": stages.bundle,
        "probes": stages.quality,
    }
    for stage, call in calls.items():
        try:
            call(point)
        except RdError as error:
            stages.report(f"{point.name}: {stage} failed: {error}")
            return f"{stage}: {error.message}"
        except Exception as error:
            stages.report(traceback.format_exc())
            return f"{stage}: {type(error).__name__}: {error}"
    return None


def reference_probes(stages: PointStages) -> dict[str, Any]:
    """Log-mel energies on the same probes: what a point has to beat."""
    file = stages.output / "points" / "log-mel.json"
    if not file.exists():
        rows = [probed(one, of_log_mel(), seed=stages.grid.seed) for one in stages.probes]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"log-mel": rows})
    value: dict[str, Any] = read_json(file)
    return value


def timed(stages: PointStages, points: Sequence[GridPoint]) -> dict[str, Any]:
    """Seconds per second of speech of every artifact, in turns in this process; kept for the same artifacts."""
    bundles = {point.name: stages.bundle(point) for point in points}
    hashes = {name: one.manifest.artifact_sha256 for name, one in bundles.items()}
    file = stages.output / TIMES
    stored = read_json(file) if file.exists() else {}
    if stored.get("artifacts") == hashes and "lengths" in stored:
        return dict(stored)
    if not bundles:
        return {"artifacts": {}, "turns": {}, "lengths": {}, "machine": machine(1), "seconds": 0.0}
    stages.report(f"timing {len(bundles)} artifacts in {stages.grid.repeats} turns")
    encoders = {name: Encoder.load(one.path, threads=1) for name, one in bundles.items()}
    wave = speech(stages, max(stages.grid.seconds, *LENGTHS_S))
    lengths = {seconds: _turns(stages, encoders, wave[: seconds * SAMPLE_RATE_HZ]) for seconds in LENGTHS_S}
    times = {
        "artifacts": hashes,
        "turns": _turns(stages, encoders, wave[: round(stages.grid.seconds * SAMPLE_RATE_HZ)]),
        "lengths": {f"{seconds}": of_length for seconds, of_length in lengths.items()},
        "machine": machine(1),
        "seconds": stages.grid.seconds,
    }
    write_json(file, times)
    return times


def _turns(stages: PointStages, encoders: Mapping[str, Encoder], wave: np.ndarray) -> dict[str, dict[str, list[float]]]:
    """Seconds per second of the ``wave`` (T,) of every turn of every artifact."""
    calls = {name: partial(encoder.extract, wave, SAMPLE_RATE_HZ) for name, encoder in encoders.items()}
    turns = take_turns(calls, repeats=stages.grid.repeats, seed=stages.grid.seed)
    seconds = len(wave) / SAMPLE_RATE_HZ
    return {
        name: {"wall": [s / seconds for s in one.wall_s], "processor": [s / seconds for s in one.processor_s]}
        for name, one in turns.items()
    }


def speech(stages: PointStages, seconds: float) -> np.ndarray:
    """(T,) samples: test recordings of the probes one after the other."""
    from reuse_distill.distill.data.reading import read_utterance

    size, parts, held = round(seconds * SAMPLE_RATE_HZ), [], 0
    items = [one.data.utterances[index] for one in stages.probes for index in one.data.test]
    while held < size:
        for utterance in items:
            parts.append(read_utterance(utterance))
            held += len(parts[-1])
            if held >= size:
                break
    return np.concatenate(parts)[:size]
