"""Our students on every engine that runs here, beside peers on the engines that run them: taking turns in one run.

    python -m benchmarks.engines_cpu prepare --work DIR --whisper ../shared/teachers/whisper-base [--only TEXT ...]
    OMP_NUM_THREADS=1 python -m benchmarks.engines_cpu run --work DIR --json benchmarks/results/engines_cpu.json
    python -m benchmarks.engines_cpu table benchmarks/results/engines_cpu.json      # the tables of docs/benchmarks.md

``prepare`` makes the artifacts (an hour on one core for all of them, once); ``run`` measures those that are there, in
minutes: whole utterances of 2 s and 10 s, steps of one stream and of eight. Ratios are by turns, median with 10th and
90th percentile. Beside every speed stands the mean frame cosine to the same model in float, on ONNX Runtime, on the
same samples. Memory is the peak of a process of its own. What was not made or cannot run is named with the reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.equivalence.parity import difference
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ, samples_for

from benchmarks.command import write_json
from benchmarks.engine_contenders import (
    HUBERT,
    SECONDS,
    STREAMS,
    WHISPER,
    Contender,
    megabytes,
    missing,
    open_call,
    path_of,
    peers,
    prepare,
    steps,
    students,
)
from benchmarks.engine_tables import tables
from benchmarks.timing import alternate, machine, ratios, spread

BASELINE = f"{HUBERT} onnx fp32"
STEP_SECONDS = 10  # of audio that a stream hears per turn
UNMEASURED = "unmeasured"


def main() -> int:
    args = _parser().parse_args()
    if args.command == "table":
        print(tables(json.loads(args.result.read_text("utf-8"))))
        return 0
    every = [*students(), *peers(), *steps()]
    chosen = [one for one in every if not args.only or any(text in one.folder for text in args.only)]
    args.work.mkdir(parents=True, exist_ok=True)
    if args.command == "prepare":
        prepare(args.work, chosen, args.whisper, say=lambda text: print(text, file=sys.stderr, flush=True))
        return 0
    result = measured(args.work, chosen, threads=args.threads, repeats=args.repeats, memory=not args.no_memory)
    write_json(result, args.json)
    print(tables(result))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "run"):
        one = commands.add_parser(name)
        one.add_argument("--work", type=Path, required=True, help="folder of the artifacts")
        one.add_argument("--only", nargs="*", default=[], help="contenders whose folder has one of these texts in it")
    commands.choices["prepare"].add_argument("--whisper", type=Path, help="a transformers folder of Whisper base")
    run = commands.choices["run"]
    run.add_argument("--threads", type=int, default=1)
    run.add_argument("--repeats", type=int, default=7)
    run.add_argument("--json", type=Path)
    run.add_argument("--no-memory", action="store_true", help="without the processes that measure memory")
    commands.add_parser("table").add_argument("result", type=Path)
    return parser


def measured(
    work: Path, contenders: list[Contender], *, threads: int, repeats: int, memory: bool = True
) -> dict[str, Any]:
    """Everything that the tables need, of the contenders that are there."""
    absent = missing(work, contenders)
    present = [one for one in contenders if one.name not in absent]
    whole = [one for one in present if one.chunk is None]
    result: dict[str, Any] = {"machine": {**machine(threads), **_engine_versions()}, "repeats": repeats}
    lengths: dict[str, Any] = {}
    for seconds in SECONDS:
        taking = [one for one in whole if one.seconds in (None, seconds)]
        lengths[f"{seconds} s"] = utterances(work, taking, seconds, threads, repeats, absent)
    result["lengths"] = lengths
    result["steps"] = streams(work, [one for one in present if one.chunk], whole, threads, repeats, absent)
    result["peak_mb"] = {one.folder: _peak(work, one) for one in whole} if memory else UNMEASURED
    result["absent"] = absent
    return result


def utterances(
    work: Path, taking: list[Contender], seconds: int, threads: int, repeats: int, absent: dict[str, str]
) -> dict[str, Any]:
    """Speed and fidelity for an utterance of ``seconds``; a contender that fails is moved to ``absent``."""
    wave = speech_like(SAMPLE_RATE_HZ * seconds, seed=3)
    calls: dict[str, Callable[[], object]] = {}
    outputs: dict[str, np.ndarray] = {}
    for one in taking:
        try:
            call = open_call(work, one, threads)
            outputs[one.name] = np.asarray(call(wave))
        except RdError as error:
            absent[one.name] = str(error)
            continue
        calls[one.name] = lambda run=call: run(wave)  # type: ignore[misc]
    taken = alternate(calls, repeats=repeats, warmup=1)
    rows = {}
    for one in taking:
        if one.name not in taken:
            continue
        times, reference = taken[one.name], f"{one.model} onnx fp32"
        rows[one.name] = {
            "model": one.model,
            "engine": one.label,
            "mb": megabytes(work, one),
            "rtf": spread([t / seconds for t in times]),
            "over_baseline": ratios(taken[BASELINE], times) if BASELINE in taken else UNMEASURED,
            "over_own_float": ratios(taken[reference], times) if reference in taken else UNMEASURED,
            "cosine": fidelity(outputs[one.name], outputs.get(reference)),
            "folder": one.folder,
        }
    return rows


def fidelity(found: np.ndarray, reference: np.ndarray | None) -> float | str:
    """Mean frame cosine of features (F, W) to the same model's in float."""
    return UNMEASURED if reference is None else round(difference(found[None], reference[None]).mean_cosine, 5)


def streams(
    work: Path, taking: list[Contender], whole: list[Contender], threads: int, repeats: int, absent: dict[str, str]
) -> dict[str, Any]:
    """Step times of one stream, cost of eight, against the offline cost of the same engine and precision."""
    wave = speech_like(SAMPLE_RATE_HZ * STEP_SECONDS, seed=5)
    encoders: dict[str, Encoder] = {}
    for one in taking:
        try:
            encoders[one.name] = Encoder.load(path_of(work, one), threads=threads)
            encoders[one.name].extract(wave[: SAMPLE_RATE_HZ // 2])
        except RdError as error:
            encoders.pop(one.name, None)
            absent[one.name] = str(error)
    offline = {
        f"{one.model} {one.engine} {one.precision}": Encoder.load(path_of(work, one), threads=threads).extract
        for one in whole
        if not one.file and one.seconds in (None, STEP_SECONDS) and any(one.model == step.model for step in taking)
    }
    single: dict[str, list[float]] = {name: [] for name in encoders}
    batch: dict[str, list[float]] = {name: [] for name in encoders}
    base: dict[str, list[float]] = {name: [] for name in offline}
    for turn in range(max(2, repeats // 2) + 1):
        for name, extract in offline.items():
            began = time.perf_counter()
            extract(wave)
            _keep(base[name], [time.perf_counter() - began], turn)
        for name, encoder in encoders.items():
            _keep(single[name], pushes(encoder, wave), turn)
            _keep(batch[name], [together(encoder, wave[: 2 * SAMPLE_RATE_HZ]) / 2], turn)
    features = {name: np.asarray(encoder.extract(wave)) for name, encoder in encoders.items()}
    rows = {}
    for one in taking:
        if one.name not in encoders:
            continue
        times, own = single[one.name], base.get(f"{one.model} {one.engine} {one.precision}")
        audio_s = (one.chunk or 1) * HOP_SAMPLES / SAMPLE_RATE_HZ
        cost, each = float(np.median(times)) / audio_s, float(np.median(batch[one.name])) / STREAMS
        own_cost = None if not own else float(np.median(own)) / STEP_SECONDS
        rows[one.name] = {
            "model": one.model,
            "engine": one.label,
            "chunk": one.chunk,
            "step_ms": {f"p{q}": round(1000 * float(np.percentile(times, q)), 3) for q in (50, 99)},
            "steps": len(times),
            "cpu_per_s": cost,
            "over_offline": UNMEASURED if own_cost is None else round(cost / own_cost, 2),
            "eight_per_stream_over_offline": UNMEASURED if own_cost is None else round(each / own_cost, 2),
            "eight_ms_per_round": round(1000 * each * STREAMS * audio_s, 3),
            "cosine": fidelity(features[one.name], features.get(f"{one.model} onnx fp32 C={one.chunk}")),
            "mb": megabytes(work, one),
        }
    return rows


def _keep(into: list[float], seconds: list[float], turn: int) -> None:
    if turn:  # the first turn warms up
        into += seconds


def pushes(encoder: Encoder, wave: np.ndarray) -> list[float]:
    """Seconds of every push of one chunk."""
    chunk, taken = encoder.geometry.chunk_frames, []
    with encoder.stream() as stream:
        stream.push(wave[: samples_for(chunk)])
        for start in range(samples_for(chunk), len(wave) - HOP_SAMPLES * chunk, HOP_SAMPLES * chunk):
            began = time.perf_counter()
            stream.push(wave[start : start + HOP_SAMPLES * chunk])
            taken.append(time.perf_counter() - began)
    return taken


def together(encoder: Encoder, wave: np.ndarray) -> float:
    """Seconds for eight streams over ``wave``, stepped together where the engine can."""
    several = encoder.streams(STREAMS)
    began = time.perf_counter()
    for start in range(0, len(wave), HOP_SAMPLES * encoder.geometry.chunk_frames):
        for stream in several:
            stream.feed(wave[start : start + HOP_SAMPLES * encoder.geometry.chunk_frames])
        while any(stream.ready for stream in several):
            encoder.step(several)
    return time.perf_counter() - began


def _peak(work: Path, one: Contender) -> float | str:
    """Peak memory in MB of a process that opens the contender and runs 10 s (or its own length), without torch."""
    kind = ["--peer", one.engine] if one.file else []
    kind += ["--mel"] if one.model == WHISPER else []
    command = [sys.executable, "-m", "benchmarks.engine_calls", str(path_of(work, one)), *kind]
    command += ["--seconds", str(one.seconds or max(SECONDS))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return round(int(done.stdout.split()[-1]) / 1e6, 1) if done.returncode == 0 else UNMEASURED


def _engine_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("openvino", "nncf", "executorch", "ai-edge-litert", "litert-torch", "ai-edge-quantizer"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


if __name__ == "__main__":
    sys.exit(main())
