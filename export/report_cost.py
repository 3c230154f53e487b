"""Sections of a bundle's report: parity where it is likely to break, and what the artifact costs."""

from __future__ import annotations

from typing import Any

from reuse_distill.devices.page import Badge, facts, figures, section, table
from reuse_distill.devices.units import show
from reuse_distill.runtime.manifest import Manifest


def slices(told: dict[str, Any]) -> str:
    """Quiet, loud and noisy audio, and the worst recording; an empty string for bundles of before."""
    rows = [
        (
            row["slice"],
            row["of"],
            str(row["frames"]),
            f"{row['max_abs']:.2e}",
            f"{row['mean_cosine']:.5f}",
            f"{row['min_cosine']:.5f}",
        )
        for row in told.get("slices", [])
    ]
    if not rows:
        return ""
    head = ("slice", "of", "frames", "largest difference", "mean cosine", "worst frame")
    return f"<h3>By level and in noise</h3>{table(head, rows, numeric=range(2, 6))}{_worst(told)}"


def _worst(told: dict[str, Any]) -> str:
    worst = told.get("worst")
    if not worst:
        return ""
    figures_ = f"largest difference {worst['max_abs']:.2e}, mean cosine {worst['mean_cosine']:.5f}"
    return facts([("worst recording", f"{worst['name']}: {figures_}")])


def cost(manifest: Manifest) -> str:
    """MACs and memory as computed from the shapes, and which unit ran what where that was told."""
    told = manifest.estimates
    if not told:
        return ""
    rows = [
        ("of", str(told["of"])),
        ("multiply-accumulates", f"{macs(told['macs_per_second'])} for a second of audio"),
        ("artifact", show(told["artifact_bytes"] or None, "bytes")),
        ("state", show(told["state_bytes"], "bytes") if told["state_bytes"] else "none"),
        ("largest values at once", show(told["activation_bytes"], "bytes") + ", in float32"),
        ("memory in all", show(told["memory_bytes"], "bytes") + ", without the engine itself"),
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
        return f"<p>Not told for this target.{' Compared by ' + by + '.' if by else ''}</p>"
    rows = [
        (unit, str(part["nodes"]), ", ".join(f"{count} {op}" for op, count in part["operators"].items()))
        for unit, part in ran_on.items()
    ]
    return table(("unit", "nodes", "operators"), rows, numeric=(1,))
