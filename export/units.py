"""The report's section on who runs what, for targets whose finished file tells."""

from __future__ import annotations

from html import escape

from reuse_distill.devices.page import code, facts, figures, section, table
from reuse_distill.runtime.manifest import Manifest


def units(manifest: Manifest) -> str:
    """Operations per unit and what stays on portable kernels; an empty string where the file does not tell."""
    told = manifest.device or {}
    if "placement" not in told:
        return ""
    rows = [(code(unit), str(count)) for unit, count in sorted(told["placement"].items(), key=lambda row: -row[1])]
    left = table(("unit", "operations"), rows, numeric=(1,))
    portable = told.get("portable_operations", {})
    names = ", ".join(f"{name} × {count}" for name, count in portable.items()) or "none"
    right = facts(
        [
            ("delegate", str(told.get("delegate", "none"))),
            ("calls of the delegate", str(told.get("delegate_calls", "unmeasured"))),
            ("on portable kernels", names),
        ]
    )
    lead = f"<p>Read off {escape(manifest.artifact)}, delegates' payloads included.</p>"
    return section("Units", figures([("", lead + left), ("", right)]))
