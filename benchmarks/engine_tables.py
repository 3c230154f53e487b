"""The tables of docs/benchmarks.md from the JSON of ``benchmarks.engines_cpu``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.timing import shown

UNMEASURED = "unmeasured"


def tables(result: Mapping[str, Any]) -> str:
    """Markdown: whole utterances, steps, who took no part and why."""
    return "\n".join([*_whole(result), "", *_steps(result), "", *_absent(result), *_machine(result)])


def _whole(result: Mapping[str, Any]) -> Iterator[str]:
    lengths = result["lengths"]
    names = list(dict.fromkeys(name for rows in lengths.values() for name in rows))
    peaks = result["peak_mb"]
    measured = not isinstance(peaks, str)
    yield (
        "| model | engine | MB | RTF "
        + " / ".join(lengths)
        + " | cosine to float | over HuBERT Base fp32, "
        + (" | ".join(lengths))
        + (" | peak MB |" if measured else " |")
    )
    yield "|" + "---|" * (5 + measured + len(lengths))
    for name in names:
        rows = [rows.get(name) for rows in lengths.values()]
        one = next(row for row in rows if row)
        rtf = " / ".join(UNMEASURED if row is None else f"{row['rtf']['median']:.4f}" for row in rows)
        cosine = [row["cosine"] for row in rows if row]
        over = " | ".join(_ratio(None if row is None else row["over_baseline"]) for row in rows)
        folders = [row["folder"] for row in rows if row]
        peak = f" {peaks.get(folders[-1], UNMEASURED)} |" if measured else ""
        worst = min((c for c in cosine if not isinstance(c, str)), default=UNMEASURED)
        yield f"| {one['model']} | {one['engine']} | {one['mb']} | {rtf} | {_number(worst)} | {over} |{peak}"


def _steps(result: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| model | engine | C | step p50 / p99 ms | p99 / p50 | compute per second of audio | "
        "over its own offline cost | eight streams: ms a round | each over offline | cosine to float |"
    )
    yield "|" + "---|" * 10
    for row in result["steps"].values():
        p50, p99 = row["step_ms"]["p50"], row["step_ms"]["p99"]
        yield (
            f"| {row['model']} | {row['engine']} | {row['chunk']} "
            f"| {p50:.2f} / {p99:.2f} | {p99 / p50:.2f} | {row['cpu_per_s']:.4f} | "
            f"{_times(row['over_offline'])} | {row['eight_ms_per_round']:.2f} | "
            f"{_times(row['eight_per_stream_over_offline'])} | {_number(row['cosine'])} |"
        )


def _absent(result: Mapping[str, Any]) -> Iterator[str]:
    if result["absent"]:
        yield "Not measured:"
        yield ""
        for name, why in result["absent"].items():
            yield f"- {name}: {' '.join(str(why).split())}"
        yield ""


def _machine(result: Mapping[str, Any]) -> Iterator[str]:
    machine = result["machine"]
    engines = ", ".join(f"{name} {value}" for name, value in machine.items() if name.startswith(ENGINE_PACKAGES))
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    place = f"{machine['processor']}, {machine['system']}, threads: {machine['threads']}"
    yield f"Machine: {place}, {result['repeats']} turns; {versions}, {engines}."


ENGINE_PACKAGES = ("openvino", "nncf", "executorch", "ai-edge", "litert")


def _ratio(value: Any) -> str:
    return UNMEASURED if value is None or isinstance(value, str) else shown(value)


def _number(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.4f}"


def _times(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.2f}"
