"""Device profiles: what is publicly known about a device, every number with its source or `unmeasured`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from reuse_distill.devices.toml_file import read_toml
from reuse_distill.report.quantities import UNITS, parse_quantity
from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.runtime.record import from_dict

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
class Profile:
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


def read_profile(path: Path) -> Profile:
    """Read one profile file; its name is the file's stem. Raises RdError for unknown keys and missing sources."""
    data: dict[str, Any] = read_toml(path, what="device profile")
    return from_dict(Profile, {"name": path.stem, **data}, where=str(path))


@lru_cache(maxsize=1)
def known_profiles() -> dict[str, Profile]:
    """All profiles that ship with this package, by name."""
    return {path.stem: read_profile(path) for path in sorted(FOLDER.glob("*.toml"))}


def find_profile(name: str) -> Profile:
    """The profile called ``name``. Raises RdError with the nearest known name."""
    profiles = known_profiles()
    if name not in profiles:
        raise RdError(
            f"there is no device profile {name!r}",
            hint=f"{nearest(name, list(profiles))} (rd-latency devices)",
        )
    return profiles[name]
