"""Ways to choose int8 ranges, side by side on the same recordings, with the front end in int8 and in float.

    OMP_NUM_THREADS=1 python -m benchmarks.int8_methods AUDIO [--json benchmarks/results/int8_methods.json]

AUDIO is a file, a folder or a manifest: three of four recordings calibrate (up to 32 clips of 6 s), of the others up to
six check (12 s each). The students are the shipped ones, or those of --students. Every way is written, loaded and run
as a bundle is; the figure is the mean frame cosine to torch in float32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reuse_distill.export.capture.capture import capture
from reuse_distill.export.parity.reference import read_named_clips, reference_features
from reuse_distill.export.quantise.calibration import CalibrationSet, feeds, read_calibration
from reuse_distill.export.quantise.quantisation_recipe import FRONT_END, Recipe
from reuse_distill.export.spec import ExportSpec, Offline, Streaming
from reuse_distill.export.targets import Job
from reuse_distill.export.targets.onnx.drift_trials import Trials
from reuse_distill.export.targets.onnx.onnx_target import convert
from reuse_distill.export.targets.onnx.qdq import measure_ranges
from reuse_distill.export.targets.onnx.static_int8 import OPERATORS, method_name
from reuse_distill.student import Student, load_checkpoint

from benchmarks.command import write_json
from benchmarks.timing import machine

WEIGHTS = Path(__file__).resolve().parents[1] / "student" / "weights"
STUDENTS = [WEIGHTS / "tiny", WEIGHTS / "pocket-stream"]
PERCENTILES = (99.9999, 99.999, 99.99, 99.9)
METHODS = [
    Recipe("int8", "int8-static"),
    *(Recipe("int8", "int8-static", method="percentile", percentile=value) for value in PERCENTILES),
    Recipe("int8", "int8-static", method="entropy"),
]
FRONT_ENDS: dict[str, tuple[str, ...]] = {"int8": (), "float": (FRONT_END,)}


def main() -> None:
    """Measure every way of every student, print a table, write the JSON."""
    args = _arguments()
    calibration = read_calibration(args.audio)
    if not calibration.held_out:
        raise SystemExit(f"{args.audio}: every fourth recording checks, and there are fewer than four")
    names, clips = zip(*read_named_clips(calibration.held_out), strict=True)
    result: dict[str, Any] = {
        "machine": machine(threads=1),
        "calibration": calibration.describe(),
        "checked_on": {"recordings": list(names), "seconds": round(sum(map(len, clips)) / 16_000, 1)},
        "students": {},
    }
    for folder in args.students:
        result["students"][folder.name] = dict(measured(load_checkpoint(folder), calibration, clips))
    print("\n".join(table(result["students"])))
    write_json(result, args.json)


def measured(student: Student, calibration: CalibrationSet, clips: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(method, front end -> mean frame cosine and size) of one student; it streams where it can."""
    context = student.config.context
    mode = Offline() if context is None or not student.config.streamable else Streaming(context)
    spec = ExportSpec("onnx", mode, "int8", (student.config.layers,), "heads")
    captured = capture(student, spec)
    references = tuple(reference_features(student, spec, clip) for clip in clips)
    with tempfile.TemporaryDirectory(prefix="rd-bench-") as scratch:
        plain = Path(scratch) / "plain.onnx"
        convert(captured, plain)
        job = Job(captured, spec, calibration, Path(scratch), Path(scratch), lambda _: None)
        for recipe in METHODS:
            print(f"{mode.name}: {method_name(recipe)} …", file=sys.stderr, flush=True)
            ranges = measure_ranges(plain, feeds(captured, spec, calibration), recipe, OPERATORS)
            trials = Trials(job, plain, ranges, recipe, tuple(clips), references)
            points = {name: trials.measure(blocks) for name, blocks in FRONT_ENDS.items()}
            yield (
                method_name(recipe),
                {n: {"mean_cosine": 1 - point.drift, "size_bytes": point.size_bytes} for n, point in points.items()},
            )


def table(students: dict[str, dict[str, Any]]) -> list[str]:
    """The rows as they stand in the documentation."""
    heads = [
        f"`{name}`, {'all int8' if end == 'int8' else 'front end float'}" for name in students for end in FRONT_ENDS
    ]
    lines = [f"| method | {' | '.join(heads)} |", f"|{'---|' * (len(heads) + 1)}"]
    for method in map(method_name, METHODS):
        cells = [f"{ways[method][end]['mean_cosine']:.5f}" for ways in students.values() for end in FRONT_ENDS]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("audio", type=Path, metavar="AUDIO")
    p.add_argument("--students", type=Path, nargs="+", default=STUDENTS, metavar="CHECKPOINT", help="the shipped ones")
    p.add_argument("--json", type=Path, help="write every figure here")
    return p.parse_args()


if __name__ == "__main__":
    main()
