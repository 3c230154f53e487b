"""Every target that runs on a CPU beside two peers, one thread, one run, taking turns.

    OMP_NUM_THREADS=1 python -m benchmarks.targets_cpu --peers PEERS_DIR [--json benchmarks/results/targets_cpu.json]

The student (armhubert-960h shape, random weights) runs as bundles through the runtime's own back ends: ONNX Runtime and
ExecuTorch with XNNPACK, fp32 and int8, the front end in int8 or in float. The peers are optimum's plain exports that
``benchmarks/peers.py`` writes; without ``--peers`` they are reported as unmeasured. Speedups are ratios of neighbouring
turns, median with 10th and 90th percentile.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.export.spec import Offline
from reuse_distill.runtime.bundle_format.bundle import read_bundle
from reuse_distill.runtime.engines.engine_choice import open_backend
from reuse_distill.runtime.engines.ort_backend import session_options

from benchmarks.artifacts import bundle_of, last_layer, student_of
from benchmarks.command import parser, print_times, workplace, write_json
from benchmarks.timing import alternate, machine, ratios, spread

SECONDS = (2, 10)
BASELINE = "optimum HuBERT Base fp32"
PEERS = {
    BASELINE: "hubert-base-fp32.onnx",
    "optimum HuBERT Base int8": "hubert-base-int8.onnx",
    "optimum DistilHuBERT fp32": "distilhubert-fp32.onnx",
    "optimum DistilHuBERT int8": "distilhubert-int8.onnx",
}
STUDENTS = {
    "student ONNX fp32": ("onnx", "fp32", "auto"),
    "student ONNX int8": ("onnx", "int8", "int8"),
    "student ONNX int8, float front end": ("onnx", "int8", "float"),
    "student ExecuTorch fp32": ("executorch", "fp32", "auto"),
    "student ExecuTorch int8": ("executorch", "int8", "int8"),
    "student ExecuTorch int8, float front end": ("executorch", "int8", "float"),
}
COLUMNS = {
    "faster_than_hubert_base": "over optimum HuBERT Base",
    "faster_than_student_onnx_fp32": "over student ONNX fp32",
}
Call = Callable[[np.ndarray], object]


def main() -> None:
    """Build the artifacts, time them, print a table, write the JSON."""
    command = parser(__doc__)
    command.add_argument("--peers", type=Path, help="what benchmarks/peers.py wrote")
    args = command.parse_args()
    work = workplace(args)
    bundles = {name: _bundle(work, *options) for name, options in STUDENTS.items()}
    calls = {name: _student(folder) for name, folder in bundles.items()}
    peers = {} if args.peers is None else {name: args.peers / file for name, file in PEERS.items()}
    calls |= {name: _peer(file) for name, file in peers.items()}
    result = {
        "machine": machine(threads=1),
        "peers": "unmeasured" if args.peers is None else json.loads((args.peers / "versions.json").read_text("utf-8")),
        "repeats": args.repeats,
        "size_mb": {name: _megabytes(path) for name, path in (bundles | peers).items()},
        "lengths": {f"{s} s": _compare(calls, s, args.repeats) for s in SECONDS},
    }
    _show(result)
    write_json(result, args.json)


def _bundle(work: Path, target: str, precision: str, front_end: str) -> Path:
    student = student_of("armhubert-960h")
    spec = replace(last_layer(student, Offline(), precision), target=target, front_end=front_end)
    return bundle_of(student, work / f"{target}-{precision}-{front_end}", spec)


def _student(folder: Path) -> Call:
    backend = open_backend(read_bundle(folder), provider="auto", threads=1)
    return lambda wave: backend.run({"wave": wave})


def _peer(file: Path) -> Call:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), session_options(1), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda wave: session.run(None, {name: wave})


def _megabytes(path: Path) -> float:
    if path.is_dir():
        return round(read_bundle(path).manifest.artifact_bytes / 1e6, 1)
    return round(path.stat().st_size / 1e6, 1)


def _compare(calls: dict[str, Call], seconds: int, repeats: int) -> dict[str, Any]:
    wave = speech_like(16_000 * seconds, seed=3)[None]
    taken = alternate({name: (lambda run=call: run(wave)) for name, call in calls.items()}, repeats=repeats)
    baseline = taken.get(BASELINE)
    return {
        name: {
            "rtf": spread([t / seconds for t in times]),
            "faster_than_hubert_base": "unmeasured" if baseline is None else ratios(baseline, times),
            "faster_than_student_onnx_fp32": ratios(taken["student ONNX fp32"], times),
        }
        for name, times in taken.items()
    }


def _show(result: dict[str, Any]) -> None:
    for length, rows in result["lengths"].items():
        print_times(length, rows, COLUMNS)
    print("\nsize MB", result["size_mb"])
    print("machine", result["machine"], "\npeers  ", result["peers"])


if __name__ == "__main__":
    main()
