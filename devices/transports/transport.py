"""What every transport does, and the two ways in which it can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Protocol

from reuse_distill.devices.measuring.measurement import Measurement, Request
from reuse_distill.runtime.errors import RdError

Progress = Callable[[str], None]


class Unreachable(RdError):
    """The device could not be reached, or was lost on the way."""


class NotMeasured(RdError):
    """The device was reached and could not measure."""


class Transport(Protocol):
    """A way to one device."""

    @property
    def address(self) -> str:
        """Where the device is; empty for this machine."""
        ...

    def measure(
        self, bundle: Path, request: Request, *, limit_s: float, progress: Progress, cancel: Event
    ) -> Measurement:
        """Run the worker on the device. ``cancel`` ends it early, cleanly, with ``KeyboardInterrupt``.

        Raises Unreachable or NotMeasured.
        """
        ...


@dataclass(frozen=True)
class Finished:
    """A process that has ended."""

    status: int  # negative: killed by that signal
    stdout: str
    messages: tuple[str, ...]  # the last lines of standard error that were no progress
    seconds: float
    timed_out: bool = False
    too_long: bool = False  # its output was more than is read, and it was stopped
