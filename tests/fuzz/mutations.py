"""Ways to damage JSON values and bytes, from a generator: the same generator damages in the same way."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

WEIRD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 8, 400, 2**31, 2**63 - 1, -(2**63), 10**17, 0.5, -0.0, 1e-300, 1e300, "", "B",
    "float32", "int8", "features", "samples", "a" * 300, "\0", "../x", "/etc/passwd", "\x1b[31m", "é\u2028", [], {},
    [0], [[]], ["B", 1], ["B", 4, 128, 32], {"": 0}, [1] * 50, {"max_abs": -1}, {"mean_cosine": 2},
)  # fmt: skip


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value below ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, one in items for path in ((*at, key), *paths(one, (*at, key)))]


def damage_value(value: Any, rng: np.random.Generator, weird: tuple[Any, ...] = WEIRD) -> Any:
    """``value`` with one to three parts replaced (by one of ``weird``), removed, copied elsewhere, or multiplied."""
    value = json.loads(json.dumps(value))
    for _ in range(int(rng.integers(1, 4))):
        known = paths(value)
        if not known:
            return value
        *above, key = known[rng.integers(len(known))]
        parent = value
        for step in above:
            parent = parent[step]
        kind = rng.integers(6)
        if kind == 0:
            del parent[key]
        elif kind == 1:
            other: Any = value
            for step in known[rng.integers(len(known))]:
                other = other[step] if isinstance(other, dict | list) and step in _keys(other) else other
            parent[key] = json.loads(json.dumps(other))
        elif kind == 2 and type(parent[key]) in (int, float):
            parent[key] = parent[key] * int(rng.choice([-1, 2, 1000, 2**20])) + int(rng.integers(-2, 3))
        elif kind == 3 and isinstance(parent[key], list):
            parent[key] = parent[key] * int(rng.integers(2, 5))
        elif kind == 4 and isinstance(parent, dict):
            parent[f"{key}{rng.integers(10)}"] = parent[key]
        else:
            parent[key] = json.loads(json.dumps(weird[rng.integers(len(weird))]))
    return value


def _keys(value: Any) -> Any:
    return value if isinstance(value, dict) else range(len(value))


def damage_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """``data`` with bits flipped, pieces removed, doubled or overwritten, numbers made extreme, or the end cut off."""
    damaged = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not damaged:
            break
        # Headers matter more than what follows.
        at = int(rng.integers(min(len(damaged), 200) if rng.random() < 0.7 else len(damaged)))
        kind, length = rng.integers(7), int(rng.integers(1, 9))
        if kind == 0:
            damaged[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            damaged[at : at + length] = rng.bytes(length)
        elif kind == 2:
            del damaged[at : at + length]
        elif kind == 3:
            damaged[at:at] = damaged[at : at + length]
        elif kind == 4:
            damaged[at : at + 4] = int(rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1])).to_bytes(4, "little")
        elif kind == 5:
            damaged[at : at + 4] = int(rng.choice([1, 2**31 - 1, 2**32 - 1])).to_bytes(4, "big")
        else:
            del damaged[at:]
    return bytes(damaged)
