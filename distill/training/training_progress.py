"""What a run shows while it runs: a live view on a terminal, a line now and then elsewhere. On stderr.

Ctrl-C, or the SIGTERM of a scheduler, ends a run after its current step, with everything saved.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

LINE_EVERY_S = 10.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingProgress(Protocol):
    """Told once per step, and of every held-out loss."""

    def step(self, step: int, row: dict[str, float]) -> None: ...

    def validated(self, step: int, loss: float) -> None: ...


class Quiet:
    """Shows nothing: processes other than the first."""

    def step(self, step: int, row: dict[str, float]) -> None:
        return

    def validated(self, step: int, loss: float) -> None:
        return


class Lines:
    """For logs: a line every ten seconds, and the last step."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._next = 0.0

    def step(self, step: int, row: dict[str, float]) -> None:
        now = time.monotonic()
        if now >= self._next or step == self.total:
            self._next = now + LINE_EVERY_S
            print(f"step {step}/{self.total}  {describe(row)}", file=sys.stderr, flush=True)

    def validated(self, step: int, loss: float) -> None:
        print(f"step {step}/{self.total}  held out {loss:.4f}", file=sys.stderr, flush=True)


class Screen:
    """For terminals: a bar, the numbers of the last step below it, and the held-out losses below those."""

    def __init__(self, total: int, done: int) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.text import Text

        left = (TimeElapsedColumn(), TextColumn("passed,"), TimeRemainingColumn(), TextColumn("left"))
        self._bar = RichProgress(BarColumn(bar_width=None), MofNCompleteColumn(), *left, expand=True)
        self._task = self._bar.add_task("distil", total=total, completed=done)
        self._numbers, self._held_out = Text(overflow="ellipsis", no_wrap=True), Text(overflow="ellipsis", no_wrap=True)
        self._best = (math.inf, 0)
        self.live = Live(Group(self._bar, self._numbers, self._held_out), console=Console(stderr=True))

    def step(self, step: int, row: dict[str, float]) -> None:
        self._bar.update(self._task, completed=step)
        self._numbers.plain = describe(row)

    def validated(self, step: int, loss: float) -> None:
        self._best = min(self._best, (loss, step))
        best = "" if self._best[1] == step else f", best {self._best[0]:.4f} (step {self._best[1]})"
        self._held_out.plain = f"held out {loss:.4f} (step {step}){best}"


def describe(row: dict[str, float]) -> str:
    """The few numbers that fit a line."""
    return (
        f"loss {row['loss']:.4f}  lr {row['lr']:.2e}  grad {row['grad_norm']:.2f}  "
        f"{row['audio_s'] / max(row['wall_s'], 1e-9):.1f}x real time"
    )


@contextmanager
def progress_display(total: int, *, done: int = 0, quiet: bool = False) -> Iterator[TrainingProgress]:
    """The progress display that fits where stderr goes."""
    if quiet:
        yield Quiet()
        return
    if not sys.stderr.isatty():
        yield Lines(total)
        return
    screen = Screen(total, done)
    with screen.live:
        yield screen


class Interrupted(KeyboardInterrupt):
    """A run that ended early because it was asked to stop, with everything saved."""


@contextmanager
def interruptible(*, quiet: bool) -> Iterator[Callable[[], bool]]:
    """Whether one of the signals has come, as a function. The second one ends the process as it would without us."""
    received: list[int] = []
    before = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            signal.default_int_handler(number, frame)
        received.append(number)
        if not quiet:
            os.write(2, b"\nstopping after this step; once more stops immediately\n")  # print may be what it interrupts

    if threading.current_thread() is threading.main_thread():  # Python lets no other one handle signals
        before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
