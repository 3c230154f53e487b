"""Ctrl-C, or the SIGTERM of a scheduler, ends a run after the step that it is in, with everything saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A run that ended early because it was asked to stop, with everything saved."""


@contextmanager
def interruptible(*, quiet: bool) -> Iterator[Callable[[], bool]]:
    """Whether one of the signals has come, as a function. The second one ends the process as it would without us."""
    came: list[int] = []
    before = {}

    def ask(number: int, frame: FrameType | None) -> None:
        if came:
            signal.default_int_handler(number, frame)
        came.append(number)
        if not quiet:
            os.write(2, b"\nstopping after this step; once more stops at once\n")  # print may be what it interrupts

    if threading.current_thread() is threading.main_thread():  # Python lets no other one handle signals
        before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
