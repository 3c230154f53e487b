"""Quantities with units: `"40 ms"` in, numbers in one base unit per dimension out, and back for people to read."""

from __future__ import annotations

import math
import re

from reuse_distill.runtime.errors import RdError

# Per dimension: unit -> factor to the base unit, which is the first one.
UNITS: dict[str, dict[str, float]] = {
    "time": {"ms": 1.0, "us": 1e-3, "µs": 1e-3, "s": 1000.0, "min": 60_000.0, "h": 3_600_000.0},
    "bytes": {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    "ratio": {"": 1.0, "x": 1.0},
    "share": {"": 1.0, "%": 0.01},
    "temperature": {"C": 1.0, "°C": 1.0},
    "energy": {"J": 1.0, "mJ": 1e-3, "Wh": 3600.0},
    "frequency": {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9},
    "rate": {"B/s": 1.0, "MB/s": 1e6, "GB/s": 1e9},
    "compute": {"MAC/s": 1.0, "GMAC/s": 1e9, "TMAC/s": 1e12},
    "power": {"W": 1.0, "mW": 1e-3},
    "count": {"": 1.0},
}
EXAMPLES = {
    "time": "40 ms",
    "bytes": "150 MB",
    "ratio": "0.5",
    "share": "0.1 %",
    "temperature": "85 C",
    "energy": "1.5 J",
}
_QUANTITY = re.compile(r"^\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S*)\s*$")


def parse_quantity(value: object, dimension: str, *, where: str) -> float:
    """``"40 ms"`` as a number in the base unit of ``dimension``.

    Raises RdError, with an example, for a number without a unit, an unknown unit or something that is no number.
    Only a ratio (an RTF) may stand without one.
    """
    units = UNITS[dimension]
    example = EXAMPLES.get(dimension, f"1 {next(iter(units))}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if "" not in units:
            raise RdError(f"{where}: {value} has no unit", hint=_unit_hint(value, units, example))
        value = str(value)
    match = _QUANTITY.match(value) if isinstance(value, str) else None
    if match is None:
        raise RdError(f"{where}: {value!r} is not a quantity", hint=f'write it like "{example}"')
    number, unit = float(match[1]), match[2]
    if unit not in units:
        what = f"unknown unit {unit!r}" if unit else f"{match[1]} has no unit"
        raise RdError(f"{where}: {what}", hint=_unit_hint(match[1], units, example))
    if not math.isfinite(number) or number < 0:
        raise RdError(f"{where}: {value!r} is not a finite quantity of 0 or more", hint=f'write it like "{example}"')
    return number * units[unit]


def _unit_hint(number: object, units: dict[str, float], example: str) -> str:
    named = [unit for unit in units if unit]
    return f'write "{number} {named[0]}" if that is what you mean; units: {", ".join(named)} (as in "{example}")'


def quantity(value: float | None, dimension: str) -> str:
    """A base-unit number for people, three significant digits; ``unmeasured`` for None."""
    if value is None or not math.isfinite(value):
        return "unmeasured"
    if dimension == "time":
        return _time(value)
    if dimension == "share":
        return f"{_digits(100 * value)} %"
    if dimension == "temperature":
        return f"{value:.1f} °C"
    if dimension in ("ratio", "count"):
        return _digits(value)
    return _scaled(value, dimension)


def _time(value_ms: float) -> str:
    if value_ms >= 60_000:
        return f"{_digits(value_ms / 60_000)} min"
    if value_ms >= 1000:
        return f"{_digits(value_ms / 1000)} s"
    return f"{_digits(value_ms)} ms" if value_ms >= 0.1 or value_ms == 0 else f"{_digits(1000 * value_ms)} µs"


def _scaled(value: float, dimension: str) -> str:
    decimal = {unit: factor for unit, factor in UNITS[dimension].items() if not unit.endswith("iB") and unit != "Wh"}
    fitting = [(factor, unit) for unit, factor in decimal.items() if factor <= abs(value)] or [
        (1.0, next(iter(decimal)))
    ]
    factor, unit = max(fitting)
    return f"{_digits(value / factor)} {unit}"


def _digits(value: float) -> str:
    """Three significant digits without an exponent."""
    if value == 0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def cosine_text(value: float | None) -> str:
    """A mean frame cosine, ``unmeasured`` for None."""
    return "unmeasured" if value is None else f"{value:.5f}"
