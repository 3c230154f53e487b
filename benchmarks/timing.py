"""Side-by-side timing: the contenders take turns in one process, so that a slow spell slows all of them."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

Spread = dict[str, float]


def alternate(
    contenders: Mapping[str, Callable[[], object]], *, repeats: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of every call, ``repeats`` per contender, taken in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + repeats):
        for name, call in contenders.items():
            began = time.perf_counter()
            call()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def spread(values: Sequence[float]) -> Spread:
    """Median and the 10th and 90th percentile."""
    ordered = sorted(values)
    tenth = max(0, round(0.1 * (len(ordered) - 1)))
    return {"median": statistics.median(ordered), "p10": ordered[tenth], "p90": ordered[-1 - tenth]}


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times ``fast`` is faster, turn by turn."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def shown(ratio: Spread) -> str:
    """``3.41 (3.30 to 3.52)``: median, 10th and 90th percentile."""
    return f"{ratio['median']:.2f} ({ratio['p10']:.2f} to {ratio['p90']:.2f})"


def machine(threads: int) -> dict[str, Any]:
    """What a figure has to be read with."""
    packages = ("torch", "onnxruntime", "numpy", "transformers")
    return {
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": threads,
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    extra = " with AVX512-VNNI" if "avx512_vnni" in flags else ""
    return (names[0] if names else "unknown") + extra
