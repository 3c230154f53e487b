"""HuBERT Base fp32, the student fp32 and the student int8, one thread, one run, taking turns.

    OMP_NUM_THREADS=1 python -m benchmarks.offline_cpu [--json benchmarks/results/offline_cpu.json]

Speedups are ratios of neighbouring turns, median with 10th and 90th percentile. Memory is the peak of a process of its
own that loads the bundle through the runtime and extracts one utterance. Weights are random.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.export.spec import Offline
from reuse_distill.runtime.engines.ort_backend import session_options

from benchmarks.artifacts import bundle_of, hubert_base_onnx, int8_onnx, last_layer, plain_onnx, student_of
from benchmarks.command import parser, print_times, workplace, write_json
from benchmarks.timing import alternate, machine, ratios, spread

SECONDS = (2, 10)
COLUMNS = {"faster_than_teacher": "over HuBERT Base", "faster_than_student_fp32": "over student fp32"}
_MEMORY = """
import sys
from reuse_distill.devices.measuring.sensors import peak_bytes
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.audio.audio_files import read_audio
encoder = Encoder.load(sys.argv[1], provider="cpu", threads=1)
audio = read_audio(sys.argv[2])
for _ in range(3):
    encoder.extract(audio.samples, audio.sample_rate_hz)
assert "torch" not in sys.modules
print(peak_bytes())
"""


def main() -> None:
    """Build the artifacts, time them, print a table, write the JSON."""
    args = parser(__doc__).parse_args()
    work = workplace(args)
    files = _artifacts(work)
    result: dict[str, Any] = {"machine": machine(threads=1), "repeats": args.repeats, "lengths": {}}
    sessions = {name: _session(file) for name, file in files.items()}
    for seconds in SECONDS:
        result["lengths"][f"{seconds} s"] = _compare(sessions, seconds, args.repeats)
    result["size_mb"] = {name: round(file.stat().st_size / 1e6, 1) for name, file in files.items()}
    bundle = bundle_of(
        student_of("armhubert-960h"), work / "bundle-int8", last_layer(student_of("armhubert-960h"), Offline(), "int8")
    )
    result["peak_memory_mb"] = {f"int8, {s} s": _peak_mb(bundle, s, work) for s in SECONDS}
    result["int8_time_by_operator"] = _by_operator(files["student int8"], work)
    _show(result)
    write_json(result, args.json)


def _artifacts(work: Path) -> dict[str, Path]:
    student = student_of("armhubert-960h")
    plain = plain_onnx(student, work / "student-fp32.onnx")
    return {
        "HuBERT Base fp32": hubert_base_onnx(work / "hubert-fp32.onnx"),
        "student fp32": plain,
        "student int8": int8_onnx(student, plain, work / "student-int8.onnx"),
        "student int8, float front end": int8_onnx(student, plain, work / "student-int8-fe.onnx", front_end="float"),
    }


def _session(file: Path, **profile: str) -> Any:
    import onnxruntime

    options = session_options(1)
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile["prefix"]
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _compare(sessions: dict[str, Any], seconds: int, repeats: int) -> dict[str, Any]:
    wave = speech_like(16_000 * seconds, seed=3)[None]
    calls = {name: (lambda s=session: s.run(None, {"wave": wave})) for name, session in sessions.items()}
    taken = alternate(calls, repeats=repeats)
    teacher, student = taken["HuBERT Base fp32"], taken["student fp32"]
    return {
        name: {
            "rtf": spread([t / seconds for t in times]),
            "faster_than_teacher": ratios(teacher, times),
            "faster_than_student_fp32": ratios(student, times),
        }
        for name, times in taken.items()
    }


def _peak_mb(bundle: Path, seconds: int, work: Path) -> float:
    """Peak resident memory of a process that loads ``bundle`` and extracts a file of ``seconds`` three times."""
    import soundfile

    file = work / f"speech-{seconds}s.wav"
    soundfile.write(file, speech_like(16_000 * seconds, seed=1), 16_000, subtype="PCM_16")
    command = [sys.executable, "-c", _MEMORY, str(bundle), str(file)]
    return round(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1e6, 1)


def _by_operator(file: Path, work: Path) -> dict[str, float]:
    """Share of the time of every operator, from ONNX Runtime's own profile over 10 runs of 10 s."""
    session = _session(file, prefix=str(work / "profile"))
    wave = speech_like(160_000, seed=3)[None]
    for _ in range(10):
        session.run(None, {"wave": wave})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    totals: dict[str, float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            op = event["args"]["op_name"]
            totals[op] = totals.get(op, 0.0) + event["dur"]
    whole = sum(totals.values())
    return {op: round(us / whole, 4) for op, us in sorted(totals.items(), key=lambda item: -item[1])}


def _show(result: dict[str, Any]) -> None:
    for length, rows in result["lengths"].items():
        print_times(length, rows, COLUMNS)
    print("\nsize MB       ", result["size_mb"])
    print("peak memory MB", result["peak_memory_mb"])
    top = list(result["int8_time_by_operator"].items())[:10]
    print("int8 time by operator:", ", ".join(f"{op} {100 * share:.0f} %" for op, share in top))
    print("machine", result["machine"])


if __name__ == "__main__":
    main()
