"""Device profiles: what is publicly known about a device, every number with its source or `unmeasured`.

TOML files of users are read without executing anything; errors name the file and the line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from reuse_distill.report.quantities import UNITS, parse_quantity
from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.runtime.untrusted_input import from_dict, to_dict

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the same library under its older name
    import tomli as tomllib

FOLDER = Path(__file__).parent / "profiles"
TRANSPORTS = ("local", "ssh", "adb", "devicectl")
UNMEASURED = "unmeasured"


@dataclass(frozen=True)
class Fact:
    """One number with its unit, and which of the profile's sources says so."""

    value: str
    source: str


Number = Fact | str  # the string can only be `unmeasured`


@dataclass(frozen=True)
class Cpu:
    """Processor. MACs per cycle are per core, dense, for multiply-accumulate instructions of full width."""

    model: str
    cores: Number
    clock: Number  # highest
    fp32_macs_per_cycle: Number = UNMEASURED
    int8_macs_per_cycle: Number = UNMEASURED


@dataclass(frozen=True)
class Accelerator:
    """GPU or NPU, as the vendor states its rate."""

    model: str
    rate: Number = UNMEASURED  # as stated
    precision: str = UNMEASURED  # that the rate is stated for, and whether sparse


@dataclass(frozen=True)
class Memory:
    """Main memory."""

    size: Number
    bandwidth: Number
    kind: str = UNMEASURED


@dataclass(frozen=True)
class DeviceProfile:
    """One device. ``targets`` are the bundles' targets that it can run."""

    name: str
    title: str
    family: str
    transport: str
    targets: tuple[str, ...]
    precisions: tuple[str, ...]  # in hardware, on any of its units
    systems: tuple[str, ...]  # OS and engine versions
    power_modes: tuple[str, ...]
    cpu: Cpu
    memory: Memory
    sources: dict[str, str]
    accelerators: tuple[Accelerator, ...] = ()
    notes: str = ""

    def __post_init__(self) -> None:
        if self.transport not in TRANSPORTS:
            raise RdError(
                f"profile {self.name}: transport {self.transport!r}", hint=nearest(self.transport, TRANSPORTS)
            )
        for where, dimension, number in self.numbers():
            _check_number(number, dimension, self.sources, where=f"profile {self.name}: {where}")

    def numbers(self) -> list[tuple[str, str, Number]]:
        """Every number: where it stands, its dimension, and the fact."""
        rates = [(f"accelerators.{a.model}.rate", "count", a.rate) for a in self.accelerators]
        return [
            ("cpu.cores", "count", self.cpu.cores),
            ("cpu.clock", "frequency", self.cpu.clock),
            ("cpu.fp32_macs_per_cycle", "count", self.cpu.fp32_macs_per_cycle),
            ("cpu.int8_macs_per_cycle", "count", self.cpu.int8_macs_per_cycle),
            ("memory.size", "bytes", self.memory.size),
            ("memory.bandwidth", "rate", self.memory.bandwidth),
            *[(where, "stated", number) for where, _, number in rates],
        ]


def _check_number(number: Number, dimension: str, sources: dict[str, str], *, where: str) -> None:
    if isinstance(number, str):
        if number != UNMEASURED:
            raise RdError(
                f"{where}: {number!r} has no source",
                hint='write { value = "…", source = "…" } or "unmeasured"',
            )
        return
    if number.source not in sources:
        raise RdError(f"{where}: source {number.source!r} is not listed", hint=nearest(number.source, list(sources)))
    if dimension in UNITS:
        parse_quantity(number.value, dimension, where=where)


def value_of(number: Number, dimension: str) -> float | None:
    """The number in base units, None where it is unmeasured."""
    return None if isinstance(number, str) else parse_quantity(number.value, dimension, where="profile")


def read_profile(path: Path) -> DeviceProfile:
    """Read one profile file; its name is the file's stem. Raises RdError for unknown keys and missing sources."""
    data: dict[str, Any] = read_toml(path, what="device profile")
    return from_dict(DeviceProfile, {"name": path.stem, **data}, where=str(path))


@lru_cache(maxsize=1)
def known_profiles() -> dict[str, DeviceProfile]:
    """All profiles that ship with this package, by name."""
    return {path.stem: read_profile(path) for path in sorted(FOLDER.glob("*.toml"))}


def find_profile(name: str) -> DeviceProfile:
    """The profile called ``name``. Raises RdError with the nearest known name."""
    profiles = known_profiles()
    if name not in profiles:
        raise RdError(
            f"there is no device profile {name!r}",
            hint=f"{nearest(name, list(profiles))} (rd-latency devices)",
        )
    return profiles[name]


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


def table(profiles: Sequence[DeviceProfile]) -> str:
    """One line a profile."""
    rows: list[tuple[str, ...]] = [("name", "device", "cores", "clock", "memory", "bandwidth", "reached by", "targets")]
    for p in profiles:
        numbers = [_value(n) for n in (p.cpu.cores, p.cpu.clock, p.memory.size, p.memory.bandwidth)]
        rows.append((p.name, p.title, *numbers, p.transport, " ".join(p.targets)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def in_full(profile: DeviceProfile) -> str:
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


def read_toml(path: Path, *, what: str) -> dict[str, Any]:
    """The file's tables as plain values. Raises RdError where it is absent, not UTF-8 or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RdError(
            f"{path}: there is no such {what}", hint="check the path; docs/devices.md and docs/ci.md show such files"
        ) from None
    except IsADirectoryError:
        raise RdError(f"{path}: is a folder, a {what} is a TOML file") from None
    except UnicodeDecodeError:
        raise RdError(f"{path}: not a text file, a {what} is TOML in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise RdError(f"{path}: not valid TOML ({error})") from None
