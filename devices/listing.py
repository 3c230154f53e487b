"""``rd-latency devices``: the profiles as a table, one profile in full, or everything as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from reuse_distill.devices.profile import Fact, Number, Profile, find_profile, known_profiles
from reuse_distill.runtime.record import to_dict


def list_devices(name: str | None, *, as_json: bool) -> int:
    """Print all profiles, or the one called ``name`` in full."""
    if name:
        profile = find_profile(name)
        print(json.dumps(to_dict(profile), indent=1, ensure_ascii=False) if as_json else in_full(profile))
        return 0
    profiles = known_profiles()
    if as_json:
        print(json.dumps({name: to_dict(profile) for name, profile in profiles.items()}, indent=1, ensure_ascii=False))
    else:
        print(table(list(profiles.values())))
    return 0


def table(profiles: Sequence[Profile]) -> str:
    """One line a profile."""
    rows: list[tuple[str, ...]] = [("name", "device", "cores", "clock", "memory", "bandwidth", "reached by", "targets")]
    for p in profiles:
        numbers = [_value(n) for n in (p.cpu.cores, p.cpu.clock, p.memory.size, p.memory.bandwidth)]
        rows.append((p.name, p.title, *numbers, p.transport, " ".join(p.targets)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def in_full(profile: Profile) -> str:
    """Everything that is known about one device, every number with its source."""
    lines = [f"{profile.name}: {profile.title}", f"  family {profile.family}, reached by {profile.transport}"]
    lines += [
        f"  targets: {', '.join(profile.targets)}",
        f"  precisions in hardware: {', '.join(profile.precisions) or 'unmeasured'}",
    ]
    lines += [
        f"  systems: {'; '.join(profile.systems)}",
        f"  power modes: {'; '.join(profile.power_modes) or 'unmeasured'}",
    ]
    lines += [f"  processor: {profile.cpu.model}", f"  memory: {profile.memory.kind}"]
    for accelerator in profile.accelerators:
        lines.append(f"  accelerator: {accelerator.model}, rate stated for {accelerator.precision}")
    for where, _, number in profile.numbers():
        source = f"  [{number.source}]" if isinstance(number, Fact) else ""
        lines.append(f"  {where}: {_value(number)}{source}")
    if profile.notes:
        lines.append(f"  {profile.notes}")
    return "\n".join([*lines, "sources:", *(f"  [{name}] {text}" for name, text in profile.sources.items())])


def _value(number: Number) -> str:
    return number if isinstance(number, str) else number.value
