"""The one table at the end of the demo, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from reuse_distill.report.plain_text import text_table
from reuse_distill.report.quantities import quantity

from demo.demo_results import Result

HEAD = ("artifact", "size", "parity with torch", "attention", "measured", "RTF", "p90", "budget", "certificate")


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """One row per bundle; what was not measured says so."""
    return [
        (
            f"{one.artifact.mode} {one.artifact.precision}",
            quantity(one.size_bytes, "bytes"),
            one.parity,
            one.reuse,
            one.pace,
            quantity(one.metrics.get("rtf"), "ratio"),
            quantity(one.metrics.get("p90"), "time"),
            one.verdict,
            certified(one),
        )
        for one in results
    ]


def certified(result: Result) -> str:
    """Whether streaming was certified to equal the whole utterance."""
    if result.artifact.mode != "streaming":
        return "not streaming"
    if result.certificate is None:
        return "unmeasured"
    return "passed" if result.certificate["passed"] else "FAILED"


def print_table(results: Sequence[Result]) -> None:
    """Aligned text; never cut."""
    print(f"\n{text_table([HEAD, *rows(results)], rule=True)}")
