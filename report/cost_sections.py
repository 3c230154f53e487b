"""Sections of a bundle's page: parity where it breaks first, what the artifact costs, which unit runs what."""

from __future__ import annotations

from html import escape
from typing import Any

from reuse_distill.report.page import Badge, code, facts, figures, section, table
from reuse_distill.report.quantities import quantity
from reuse_distill.runtime.bundle_format.manifest import Manifest


def slices(record: dict[str, Any]) -> str:
    """Quiet, loud and noisy audio, and the worst recording; an empty string for bundles of before."""
    rows = [
        (
            row["slice"].replace("-", "\u2212").replace(" ", "\u00a0"),  # never cut in two
            row["of"],
            str(row["frames"]),
            f"{row['max_abs']:.2e}",
            f"{row['mean_cosine']:.5f}",
            f"{row['min_cosine']:.5f}",
        )
        for row in record.get("slices", [])
    ]
    if not rows:
        return ""
    head = ("slice", "of", "frames", "largest difference", "mean cosine", "worst frame")
    return f"<h3>By level and in noise</h3>{table(head, rows, numeric=range(2, 6))}{_worst(record)}"


def _worst(record: dict[str, Any]) -> str:
    worst = record.get("worst")
    if not worst:
        return ""
    figures_ = f"largest difference {worst['max_abs']:.2e}, mean cosine {worst['mean_cosine']:.5f}"
    return facts([("worst recording", f"{worst['name']}: {figures_}")])


def cost(manifest: Manifest) -> str:
    """MACs and memory as computed from the shapes, and which unit ran what where that is known."""
    record = manifest.estimates
    if not record:
        return ""
    rows = [
        ("of", str(record["of"])),
        ("multiply-accumulates", f"{macs(record['macs_per_second'])} for a second of audio"),
        ("artifact", quantity(record["artifact_bytes"] or None, "bytes")),
        ("state", quantity(record["state_bytes"], "bytes") if record["state_bytes"] else "none"),
        ("largest values at once", quantity(record["activation_bytes"], "bytes") + ", in float32"),
        ("memory in all", quantity(record["memory_bytes"], "bytes") + ", without the engine itself"),
    ]
    parity = manifest.parity.get("prepared", manifest.parity)
    pictures = [("From the shapes of the graph", facts(rows)), ("Which unit ran what", _units(parity))]
    return section("Cost", figures(pictures), badge=Badge("estimated, not measured"))


def macs(per_second: float) -> str:
    """Millions or thousands of millions, three digits."""
    return f"{per_second / 1e6:.3g} M" if per_second < 1e9 else f"{per_second / 1e9:.3g} G"


def _units(parity: dict[str, Any]) -> str:
    ran_on = parity.get("ran_on")
    if not ran_on:
        by = parity.get("by")
        return f"<p>Not record for this target.{' Compared by ' + by + '.' if by else ''}</p>"
    rows = [
        (unit, str(part["nodes"]), ", ".join(f"{count} {op}" for op, count in part["operators"].items()))
        for unit, part in ran_on.items()
    ]
    return table(("unit", "nodes", "operators"), rows, numeric=(1,))


def placement(manifest: Manifest) -> str:
    """Operations per unit and what stays on portable kernels; an empty string where the file does not tell."""
    device = manifest.device or {}
    if "placement" not in device:
        return ""
    rows = [(code(unit), str(count)) for unit, count in sorted(device["placement"].items(), key=lambda row: -row[1])]
    left = table(("unit", "operations"), rows, numeric=(1,))
    portable = device.get("portable_operations", {})
    names = ", ".join(f"{name} × {count}" for name, count in portable.items()) or "none"
    right = facts(
        [
            ("delegate", str(device.get("delegate", "none"))),
            ("calls of the delegate", str(device.get("delegate_calls", "unmeasured"))),
            ("on portable kernels", names),
        ]
    )
    lead = f"<p>Read off {escape(manifest.artifact)}, delegates' payloads included.</p>"
    return section("Units", figures([("", lead + left), ("", right)]))
