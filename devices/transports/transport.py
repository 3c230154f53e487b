"""What every transport does, and the two ways in which it can fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Protocol

from reuse_distill.devices.measurement import Measurement
from reuse_distill.devices.measurement_request import Request
from reuse_distill.devices.worker import ERROR_MARK, RESULT_MARK
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.record import from_dict

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


def measurement_in(finished: Finished) -> Measurement | None:
    """The result line of a worker's output, or None where there is no whole one."""
    for line in finished.stdout.splitlines():
        if line.startswith(RESULT_MARK):
            try:
                data = json.loads(line[len(RESULT_MARK) :])
            except json.JSONDecodeError:
                return None  # cut off in the middle
            return from_dict(Measurement, data, where="the device's result")
    return None


def worker_error(finished: Finished) -> NotMeasured | None:
    """The error that a worker reported in its own words."""
    for line in finished.stdout.splitlines():
        if line.startswith(ERROR_MARK):
            try:
                data = json.loads(line[len(ERROR_MARK) :])
                return NotMeasured(str(data["message"]), hint=data.get("hint"))
            except (json.JSONDecodeError, KeyError, TypeError):
                return None
    return None


def no_result(finished: Finished, *, where: str) -> NotMeasured:
    """A worker that ended without a word: its status and the last lines it left."""
    tail = "; ".join(finished.messages[-3:])
    said = f": {tail}" if tail else ""
    if finished.timed_out:
        return NotMeasured(f"{where}: not done after {finished.seconds:.0f} s and stopped{said}")
    if finished.status == -9 or finished.status == 137:
        return NotMeasured(f"{where}: the measuring process was killed{said}", hint="was it out of memory?")
    status = f"ended with status {finished.status}"
    return NotMeasured(f"{where}: the measuring process {status}{said}", hint="run it there by hand to see more")
