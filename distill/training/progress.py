"""What a run shows while it runs: a live bar on a terminal, a line now and then elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

LINE_EVERY_S = 10.0


class Progress(Protocol):
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


class Bar:
    """For terminals: a rich progress bar."""

    def __init__(self, progress: object, task: object, total: int) -> None:
        self._progress, self._task, self.total = progress, task, total
        self._held_out = ""

    def step(self, step: int, row: dict[str, float]) -> None:
        numbers = describe(row) + self._held_out
        self._progress.update(self._task, completed=step, numbers=numbers)  # type: ignore[attr-defined]

    def validated(self, step: int, loss: float) -> None:
        self._held_out = f"  held out {loss:.4f} (step {step})"


def describe(row: dict[str, float]) -> str:
    """The few numbers that fit a line."""
    return (
        f"loss {row['loss']:.4f}  lr {row['lr']:.2e}  grad {row['grad_norm']:.2f}  "
        f"{row['audio_s'] / max(row['wall_s'], 1e-9):.1f}x real time"
    )


@contextmanager
def shown(total: int, *, done: int = 0, quiet: bool = False) -> Iterator[Progress]:
    """The progress display that fits where stderr goes."""
    if quiet:
        yield Quiet()
        return
    if not sys.stderr.isatty():
        yield Lines(total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("distil"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as progress:
        yield Bar(progress, progress.add_task("distil", total=total, completed=done, numbers=""), total)
