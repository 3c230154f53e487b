"""Grids: which compressed students stand on one trade-off page, as frozen data read from YAML."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reuse_distill.distill.compress.methods import TRAINED, split_names
from reuse_distill.distill.compress.schedule import levels_together
from reuse_distill.distill.recipe import named_settings, shipped_names
from reuse_distill.runtime.errors import RdError, nearest
from reuse_distill.runtime.untrusted_input import from_dict

FOLDER = Path(__file__).parent / "grids"
MODES = ("auto", "offline", "streaming")
PRECISIONS = ("fp32", "int8", "int8-dynamic", "int8-weights")  # what ONNX Runtime runs on a processor
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")  # a folder of the output
MOST_POINTS, MOST_STEPS = 500, 10**7
MOST_REPEATS = 1000


@dataclass(frozen=True)
class GridPoint:
    """One student of the page.

    ``method`` with ``ratio`` compresses the grid's student (several methods are joined by ``+`` and take one ratio
    each, or one for all); without one it is exported as it is. ``student`` names another one instead. ``fresh`` is no
    compression: a student of another shape, from initial weights, taught by the grid's student.
    """

    name: str
    method: str | None = None
    ratio: tuple[float, ...] = ()
    schedule: str = "1"
    recover: int | None = None  # optimiser steps after each step of the schedule; None: the grid's
    gate_steps: int = 0  # optimiser steps of methods that train gates
    student: str | None = None
    fresh: dict[str, Any] | None = None  # changes of the student's shape: distilled afresh in ``recover`` steps
    precision: str | None = None  # None: the grid's

    def __post_init__(self) -> None:
        where = f"point {self.name!r}"
        if not NAME.fullmatch(self.name):
            raise RdError(f"{where} has no usable name", hint="letters, digits, . _ + -; it names a folder")
        if self.precision is not None and self.precision not in PRECISIONS:
            raise RdError(f"{where}: precision is {self.precision!r}", hint=nearest(self.precision, PRECISIONS))
        if self.recover is not None and not 0 <= self.recover <= MOST_STEPS:
            raise RdError(f"{where}: recover is {self.recover}", hint=f"optimiser steps within 0..{MOST_STEPS}")
        if self.fresh is not None:
            if self.method or self.student or self.ratio or not self.recover:
                raise RdError(
                    f"{where} is fresh", hint="it takes recover (its optimiser steps), and no method or student"
                )
            return
        if self.method is None:
            if self.ratio or self.recover or self.schedule != "1":
                raise RdError(f"{where} has a ratio, a schedule or recovery, but no method", hint="method: heads+rows")
            return
        try:
            trained = set(self.methods) & set(TRAINED)
            if bool(trained) != (self.gate_steps > 0) or not 0 <= self.gate_steps <= MOST_STEPS:
                raise RdError(
                    f"gate_steps is {self.gate_steps} with {self.method}",
                    hint=f"{' and '.join(TRAINED)} are trained for some hundred steps, the others have no gates",
                )
            if trained and self.schedule != "1":
                raise RdError(f"schedule is {self.schedule} with gates", hint="their target grows by itself")
            self.levels()
        except RdError as error:
            raise RdError(f"{where}: {error.message}", hint=error.hint) from None

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods in the order in which they are applied."""
        return () if self.method is None else split_names(self.method)

    def levels(self) -> tuple[tuple[float, ...], ...]:
        """Of each step of the schedule, the share that each method has removed after it.

        Raises RdError for ratios outside 0..1 and numbers of them that do not fit the methods.
        """
        names = self.methods
        if len(self.ratio) not in (1, len(names)):
            raise RdError(f"{len(self.ratio)} ratios for {len(names)} methods", hint="one for all, or one each")
        return levels_together(self.ratio, self.schedule, methods=len(names))


@dataclass(frozen=True)
class TradeoffGrid:
    """A trade-off page, whole. Paths are relative to the folder that the command runs in."""

    name: str
    summary: str
    points: tuple[GridPoint, ...]
    student: str = "pocket-stream"  # a shipped student, a checkpoint folder, or an encoder of another library
    baseline: str = ""  # the point that others are compared with; empty: the first
    data: str | None = None  # audio to recover, to score and to calibrate on; --data wins
    probes: tuple[str, ...] = ()  # label=MANIFEST, speaker= or ctc=; --probe wins
    train_share: float = 1.0  # of each probe's items to train on
    test_share: float = 1.0  # of each probe's items to test with
    recover: int = 0
    recipe: str = "recover"
    fresh_recipe: str = "pocket-stream"
    precision: str = "int8-dynamic"
    mode: str = "auto"  # streaming where the student streams, else offline
    min_cosine: float | None = None  # least mean frame cosine of a quantised artifact; None: rd-export's
    limit: float = 0.05  # most that the error may rise, by the upper end of its interval, for a winner
    repeats: int = 20  # turns of the timing
    seconds: float = 20.0  # of speech in each turn
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.points) <= MOST_POINTS:
            raise RdError(f"{self.name} has {len(self.points)} points", hint=f"1 to {MOST_POINTS}")
        twice = [name for name, count in Counter(point.name for point in self.points).items() if count > 1]
        if twice:
            raise RdError(f"{self.name} has two points named {twice[0]!r}", hint="each point has a name of its own")
        if self.baseline and self.baseline not in self.names:
            raise RdError(f"baseline is {self.baseline!r}", hint=nearest(self.baseline, self.names))
        for name, value, known in (("precision", self.precision, PRECISIONS), ("mode", self.mode, MODES)):
            if value not in known:
                raise RdError(f"{name} is {value!r}", hint=nearest(value, known))
        for name, number, low, high in (
            ("train_share", self.train_share, 0.01, 1.0),
            ("test_share", self.test_share, 0.01, 1.0),
            ("limit", self.limit, 0.0, 1.0),
            ("recover", self.recover, 0, MOST_STEPS),
            ("repeats", self.repeats, 1, MOST_REPEATS),
            ("seconds", self.seconds, 1.0, 600.0),
            ("seed", self.seed, 0, 2**31),
            ("min_cosine", 0.5 if self.min_cosine is None else self.min_cosine, 0.0, 1.0),
        ):
            if not low <= number <= high:  # nor NaN
                raise RdError(f"{name} is {number:g}", hint=f"it is within {low:g}..{high:g}")

    @property
    def names(self) -> list[str]:
        """Names of the points, in order."""
        return [point.name for point in self.points]

    @property
    def compared_with(self) -> str:
        """Name of the point that the others are compared with."""
        return self.baseline or self.points[0].name

    def recovery_of(self, point: GridPoint) -> int:
        """Optimiser steps after each step of the point's schedule."""
        return self.recover if point.recover is None else point.recover

    def precision_of(self, point: GridPoint) -> str:
        """Precision of the point's artifact."""
        return point.precision or self.precision


def grid_names() -> list[str]:
    """Names of the grids that ship with the package."""
    return shipped_names(FOLDER)


def load_grid(name_or_path: str, overrides: Sequence[str] = ()) -> TradeoffGrid:
    """A shipped grid by name, or one from a YAML file, with ``key=value`` overrides.

    Raises RdError for an unknown name or key, for a value of another type, two points of one name and ratios outside
    0..1.
    """
    path, data = named_settings(name_or_path, overrides, folder=FOLDER, what="grid")
    return from_dict(TradeoffGrid, _with_tuples(data), where=path.name)


def with_data(grid: TradeoffGrid, data: str | None, probes: Sequence[str]) -> TradeoffGrid:
    """The grid with the data that the command line names in place of its own."""
    changes: dict[str, Any] = {} if data is None else {"data": data}
    if probes:
        changes["probes"] = tuple(probes)
    return dataclasses.replace(grid, **changes)


def _with_tuples(data: dict[str, Any]) -> dict[str, Any]:
    """``ratio: 0.5`` is one ratio; ``schedule: 4`` is a word."""
    points = data.get("points")
    if not isinstance(points, list):
        return data
    plain = []
    for point in points:
        if isinstance(point, dict):
            point = dict(point)
            if isinstance(point.get("ratio"), (int, float)) and not isinstance(point["ratio"], bool):
                point["ratio"] = [point["ratio"]]
            if type(point.get("schedule")) is int:
                point["schedule"] = str(point["schedule"])
        plain.append(point)
    return {**data, "points": plain}
