"""The section of a bundle's page on its heads: what each gives, and how its decisions compare with torch."""

from __future__ import annotations

from html import escape
from typing import Any

from reuse_distill.report.page import Badge, section, table
from reuse_distill.runtime.manifest import Manifest
from reuse_distill.runtime.tasks.contract import TaskOutput

MOST_LABELS = 8


def heads(manifest: Manifest) -> str:
    """A row per head; an empty string without any."""
    if not manifest.heads:
        return ""
    record = manifest.parity.get("prepared", manifest.parity).get("heads", {})
    rows = [_row(head, record.get(head.name, {}), manifest.parity.get("heads", {})) for head in manifest.heads]
    head_row = ("head", "kind", "gives", "agreement with torch", "largest difference", "bound", "seen by a user")
    measured = all("measured" in record.get(head.name, {}) for head in manifest.heads)
    lead = (
        '<p class="lead">Agreement: the share of frames with the same decision, a unit or the label that scores most. '
        f"On {escape(str(manifest.parity.get('audio', 'the recordings that check')))}.</p>"
    )
    badge = None if measured else Badge("unmeasured")
    return section("Heads", lead + table(head_row, rows, numeric=(3, 4)), badge=badge)


def _row(head: TaskOutput, entry: dict[str, Any], stated: dict[str, Any]) -> tuple[str, ...]:
    measured = entry.get("measured", {})
    bound = entry.get("bound") or stated.get(head.name, {}).get("bound", {})
    agreement, largest = measured.get("agreement"), measured.get("max_abs")
    return (
        head.name,
        head.kind,
        gives(head),
        "unmeasured" if agreement is None else f"{agreement:.4f}",
        "–" if largest is None else f"{largest:.2e}",
        ", ".join(f"{name.replace('_', ' ')} {limit:.3g}" for name, limit in bound.items()),
        ", ".join(f"{_figure(value)} {what.replace('_', ' ')}" for what, value in measured.get("seen", {}).items()),
    )


def _figure(value: Any) -> str:
    return f"{value:.5f}" if isinstance(value, float) else "unmeasured" if value is None else str(value)


def gives(head: TaskOutput) -> str:
    """What comes out, in words."""
    if head.kind == "units":
        return f"one of {head.size} units"
    if head.kind == "projection":
        return f"{head.size} numbers"
    if head.kind == "xvector":
        return "a vector for the recording"
    more = f" and {len(head.labels) - MOST_LABELS} more" if len(head.labels) > MOST_LABELS else ""
    return ", ".join(head.labels[:MOST_LABELS]) + more
