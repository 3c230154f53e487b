"""The latency dial: who chooses the chunk size of a stream's next step, and by what.

A step of few frames is early and costs more for each second of audio; a step of many frames is late and cheap. Between
two steps a stream may change from one size to another: its state is the same for all of them, so nothing is reset and
nothing becomes approximate. A policy is called after every step with what the stream knows of itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_MS

POWER_SUPPLIES = Path("/sys/class/power_supply")
THERMAL_ZONES = Path("/sys/class/thermal")
READ_EVERY_S = 10.0


@dataclass(frozen=True)
class StepStatus:
    """What a policy goes by, after a step."""

    steps: int  # made since the start of the stream
    chunk_frames: int  # of the step that was just made (before the first: of the one to come)
    choices: tuple[int, ...]  # sizes that the bundle has, smallest first
    waiting_frames: int  # frames whose samples are there and that no step has taken yet
    step_s: float  # what the last step took, with the streams that shared its batch

    @property
    def load(self) -> float:
        """Share of real time that the last step took; above 1 the stream falls behind."""
        return 1000 * self.step_s / (HOP_MS * self.chunk_frames)

    def larger(self) -> int:
        """The next larger size, or the largest."""
        return next((c for c in self.choices if c > self.chunk_frames), self.choices[-1])

    def smaller(self) -> int:
        """The next smaller size, or the smallest."""
        return next((c for c in reversed(self.choices) if c < self.chunk_frames), self.choices[0])


Policy = Callable[[StepStatus], int]  # the size of the next step, one of the choices


@dataclass
class ByLoad:
    """Larger steps where the stream falls behind or the load is above ``most``; smaller ones once they would fit.

    A step of c < C frames costs at most what one of C frames costs, so that the load with it is at most load * C / c:
    the size goes down after ``patience`` steps in a row for which that was below ``most``.
    """

    most: float = 0.5
    patience: int = 25
    _calm: int = field(default=0, init=False)

    def __call__(self, status: StepStatus) -> int:
        """See ``Policy``."""
        if not status.steps:
            return status.chunk_frames
        if status.waiting_frames >= 2 * status.chunk_frames or status.load > self.most:
            self._calm = 0
            return status.larger()
        fits = status.load * status.chunk_frames / status.smaller() < self.most
        self._calm = self._calm + 1 if fits else 0
        if self._calm < self.patience:
            return status.chunk_frames
        self._calm = 0
        return status.smaller()


@dataclass
class ByReading:
    """A size for every range of a reading; see ``by_battery`` and ``by_temperature``."""

    read: Callable[[], float | None]  # None: there is nothing to read, and ``otherwise`` holds
    size: Callable[[float], int]
    otherwise: int
    every_s: float = READ_EVERY_S
    clock: Callable[[], float] = time.monotonic
    _next_s: float = field(default=float("-inf"), init=False)
    _size: int = field(default=0, init=False)

    def __call__(self, status: StepStatus) -> int:
        """See ``Policy``: the reading is taken again every ``every_s`` seconds."""
        now = self.clock()
        if now >= self._next_s:
            value = self.read()
            self._size = self.otherwise if value is None else self.size(value)
            self._next_s = now + self.every_s
        return self._size


def by_battery(below: Mapping[float, int], *, otherwise: int, read: Callable[[], float | None] | None = None) -> Policy:
    """Size by the charge of the battery in percent while it discharges: ``by_battery({20: 16, 50: 8}, otherwise=4)``.

    The smallest limit that the charge is below decides; ``otherwise`` where it is below none or on mains.
    """
    limits = sorted(below.items())
    return ByReading(
        battery_percent if read is None else read,
        lambda percent: next((size for limit, size in limits if percent < limit), otherwise),
        otherwise,
    )


def by_temperature(
    above: Mapping[float, int], *, otherwise: int, read: Callable[[], float | None] | None = None
) -> Policy:
    """Size by the hottest sensor in degrees Celsius: ``by_temperature({70: 8, 80: 16}, otherwise=4)``."""
    limits = sorted(above.items(), reverse=True)
    return ByReading(
        hottest_celsius if read is None else read,
        lambda celsius: next((size for limit, size in limits if celsius > limit), otherwise),
        otherwise,
    )


def largest_of(*policies: Policy) -> Policy:
    """The largest size that any of several policies asks for: whoever needs to save most decides."""
    if not policies:
        raise RdError("largest_of() needs at least one policy")
    return lambda status: max([policy(status) for policy in policies])


def in_sequence(chunks: Sequence[int]) -> Policy:
    """The sizes of the steps one after another; the last one is repeated."""
    sizes = tuple(chunks)
    return lambda status: sizes[min(status.steps, len(sizes) - 1)]


def battery_percent(root: Path = POWER_SUPPLIES) -> float | None:
    """Charge of the emptiest battery that discharges, in percent; None where there is none (Linux, Android)."""
    charges = []
    for supply in sorted(root.glob("*")):
        if _text(supply / "type") == "Battery" and _text(supply / "status") == "Discharging":
            charge = _number(supply / "capacity")
            charges += [] if charge is None else [charge]
    return min(charges, default=None)


def hottest_celsius(root: Path = THERMAL_ZONES) -> float | None:
    """The hottest thermal zone in degrees Celsius; None where there is none (Linux, Android)."""
    readings = [_number(zone / "temp") for zone in sorted(root.glob("thermal_zone*"))]
    return max((value / 1000 for value in readings if value is not None), default=None)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # a sensor that is not there, or does not answer now
        return ""


def _number(file: Path) -> float | None:
    try:
        return float(_text(file))
    except ValueError:
        return None
