"""``rd-latency BUNDLE --streams auto``: how many streams, stepped by threads, in batches or by processes."""

from __future__ import annotations

import argparse
import heapq
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from reuse_distill.devices.measuring.measurement import Request
from reuse_distill.devices.measuring.measurement_run import bundle_facts, pusher
from reuse_distill.devices.measuring.sensors import Sensors
from reuse_distill.devices.measuring.speech import speech_like
from reuse_distill.devices.measuring.stream_capacity import Capacity, Measure, find_capacity
from reuse_distill.devices.measuring.stream_driver import OVERLAP_S, WallClock, cut, drive_all
from reuse_distill.devices.worker import RESULT_MARK
from reuse_distill.runtime import Encoder
from reuse_distill.runtime.cli.progress import to_stderr
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_MS, HOP_SAMPLES, SAMPLE_RATE_HZ

WARM_UP_CHUNKS = 5
AUDIO_S = 20.0
WAYS = ("threads", "batches", "processes")
NOT_MEASURED = 4


def capacity_command(given: argparse.Namespace, bundle: Path) -> int:
    """Search for every requested way; exit status 0, or 4 where not even one stream is carried by any."""
    if given.device or given.host:
        raise RdError("--streams auto measures this machine", hint="run it there, without --device and --host")
    ways = tuple(given.ways.split(","))
    if unknown := [way for way in ways if way not in WAYS]:
        raise RdError(f"--ways {unknown[0]!r} is unknown", hint=f"known: {', '.join(WAYS)}")
    encoder = Encoder.load(bundle, provider=given.provider, threads=given.threads)
    if encoder.manifest.kind != "streaming":
        raise RdError(f"--streams auto is for streaming bundles, {bundle} is {encoder.manifest.kind}")
    period_s = HOP_MS * encoder.geometry.chunk_frames / 1000
    deadline_ms = 1000 * period_s if given.deadline is None else given.deadline
    capacities = []
    for way in ways:
        print(f"{way}: chunks of {1000 * period_s:.0f} ms, late after {deadline_ms:g} ms", file=sys.stderr, flush=True)
        settings: dict[str, Any] = {"deadline_ms": deadline_ms, "seconds": given.seconds, "period_s": period_s}
        capacities.append(find_capacity(way, _measure(way, bundle, encoder, given), say=to_stderr, **settings))
        print(capacities[-1], flush=True)
    if given.json:
        write_json(capacities, given.json)
    return 0 if any(one.carried for one in capacities) else NOT_MEASURED


def write_json(capacities: list[Capacity], file: Path) -> None:
    """Every trial of every way."""
    file.write_text(json.dumps([asdict(one) for one in capacities], indent=1) + "\n", encoding="utf-8")


def _measure(way: str, bundle: Path, encoder: Encoder, given: argparse.Namespace) -> Measure:
    measures: dict[str, Callable[[], Measure]] = {
        "threads": lambda: _by_threads(encoder),
        "batches": lambda: _by_batches(encoder),
        "processes": lambda: _by_processes(bundle, given.threads, given.provider),
    }
    return measures[way]()


def _by_threads(encoder: Encoder) -> Measure:
    """A thread per stream, as ``rd-latency --streams N`` measures."""
    facts, audio = bundle_facts(encoder.bundle, encoder.geometry, Request()), _audio()

    def measure(streams: int, seconds: float) -> npt.NDArray[np.float64]:
        request = Request(streams=streams, seconds=seconds, warmup_chunks=WARM_UP_CHUNKS)
        with ExitStack() as stack:
            pushes = [pusher(stack.enter_context(encoder.stream())) for _ in range(streams)]
            run = drive_all(pushes, audio, facts, request, sensor=Sensors(), clock=WallClock(), progress=lambda _: None)
        return np.concatenate([one.latency_ms() for one in run.series])

    return measure


def _by_batches(encoder: Encoder) -> Measure:
    """One thread that steps all of them through the scheduler, deadline first; this one feeds."""
    chunk, audio = encoder.geometry.chunk_frames, _audio()
    period_s = HOP_MS * chunk / 1000

    def measure(streams: int, seconds: float) -> npt.NDArray[np.float64]:
        scheduler, stop = encoder.scheduler(waiting_s=3600.0, unsent_frames=1 << 30), threading.Event()
        chunks = max(1, round(seconds / period_s)) + WARM_UP_CHUNKS
        dues: list[list[float]] = [[] for _ in range(streams)]
        done: list[list[float]] = [[] for _ in range(streams)]
        opened = [scheduler.open(SAMPLE_RATE_HZ, notify=_stamp(times)) for times in done]
        pieces = [
            cut(audio, HOP_SAMPLES * chunk, start=HOP_SAMPLES * 7 * i % (len(audio) // 2)) for i in range(streams)
        ]
        worker = threading.Thread(target=scheduler.serve, args=(stop,), daemon=True)
        worker.start()
        origin = time.perf_counter() + OVERLAP_S + period_s
        arrivals = [(origin + period_s * i / streams, i) for i in range(streams)]
        heapq.heapify(arrivals)
        while arrivals:
            due, i = heapq.heappop(arrivals)
            time.sleep(max(0.0, due - time.perf_counter()))
            opened[i].feed(next(pieces[i]))
            dues[i].append(due)
            if len(dues[i]) < chunks:
                heapq.heappush(arrivals, (due + period_s, i))
        stop.set()  # what is there is still stepped
        worker.join()
        return np.concatenate(
            [
                1000 * (np.array(ends) - np.array(starts))[WARM_UP_CHUNKS:]
                for ends, starts in zip(done, dues, strict=True)
            ]
        )

    return measure


def _stamp(times: list[float]) -> Callable[[], None]:
    return lambda: times.append(time.perf_counter())


def _by_processes(bundle: Path, threads: int, provider: str) -> Measure:
    """As many processes as the machine has processors, the streams shared out among them."""

    def measure(streams: int, seconds: float) -> npt.NDArray[np.float64]:
        count = min(streams, os.cpu_count() or 1)
        shares = [streams // count + (i < streams % count) for i in range(count)]
        runs = []
        for share in shares:
            request = asdict(Request("paced", share, seconds, WARM_UP_CHUNKS, threads=threads, provider=provider))
            words = [
                sys.executable,
                "-m",
                "reuse_distill.devices.worker",
                str(bundle),
                "--request",
                json.dumps(request),
            ]
            runs.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
        answers = [run.communicate()[0] for run in runs]
        return np.concatenate([_latencies_ms(answer) for answer in answers])

    return measure


def _latencies_ms(answer: str) -> npt.NDArray[np.float64]:
    """Latencies in a worker's answer. Raises RdError where it has none."""
    line = next((line for line in answer.splitlines() if line.startswith(RESULT_MARK)), None)
    if line is None:
        raise RdError(f"a process that measures gave no result: {answer.strip()[-200:] or 'nothing'}")
    samples = json.loads(line.removeprefix(RESULT_MARK))["samples"]
    return np.concatenate([np.array(one["latency_ms"], np.float64) for one in samples])


def _audio() -> npt.NDArray[np.float32]:
    return speech_like(int(AUDIO_S * SAMPLE_RATE_HZ), seed=1)
