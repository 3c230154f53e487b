"""What a person sees of a long run: a header before it, progress with the time left, and the next command after it.

All of it goes to standard error, so that what a program writes to standard output can be piped.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike, fspath
from typing import TextIO, TypeVar

T = TypeVar("T")
SHORT_S = 10.0  # what takes less has no progress line
FIRST_ESTIMATE_S = 1.0
REFRESH_S = 0.2
WIDTH = 79


class Progress:
    """One line on a terminal: what, how far, the time left. Nothing where stderr is a file or the run is short.

    ``total`` is in the unit of ``update``; None where it is not known: then the line shows what is done and the time
    it took. The line appears when the whole is estimated at more than ten seconds, and is cleared at the end.
    """

    def __init__(
        self,
        what: str,
        total: float | None,
        *,
        unit: str = "",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.total, self.unit = what, total, unit
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty()
        self._clock = clock
        self._start = self._last = clock()
        self._drawn = False

    def update(self, done: float, detail: str = "") -> None:
        """``done`` of ``total`` is finished; ``detail`` says what is next or what came out."""
        now = self._clock()
        if not self._shown or now - self._last < REFRESH_S:
            return
        elapsed = now - self._start
        if not self._drawn and (elapsed < FIRST_ESTIMATE_S or self._whole_s(done, elapsed) <= SHORT_S):
            return
        self._last, self._drawn = now, True
        self._stream.write(f"\r{self._line(done, elapsed, detail):<{WIDTH}.{WIDTH}}")
        self._stream.flush()

    def close(self) -> None:
        """Clear the line."""
        if self._drawn:
            self._stream.write(f"\r{'':<{WIDTH}}\r")
            self._stream.flush()
            self._drawn = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _whole_s(self, done: float, elapsed: float) -> float:
        """Estimated time of the whole; where there is no total, twice what it has taken so far."""
        if not self.total:
            return 2 * elapsed
        return elapsed * self.total / done if done > 0 else float("inf")

    def _line(self, done: float, elapsed: float, detail: str) -> str:
        unit = f" {self.unit}" if self.unit else ""
        tail = f"  {detail}" if detail else ""
        if not self.total:
            return f"{self.what}: {done:g}{unit}, {duration(elapsed)} so far{tail}"
        share = min(done / self.total, 1.0)
        left = duration(elapsed / share - elapsed) + " left" if share > 0 else "time left not known yet"
        return f"{self.what}: {share:4.0%} of {self.total:g}{unit}, {left}{tail}"


def with_progress(items: Sequence[T], what: str, *, unit: str = "", name: Callable[[T], str] = str) -> Iterator[T]:
    """The items, one after the other, with a progress line that counts them and names the one in work."""
    with Progress(what, len(items), unit=unit) as progress:
        for i, item in enumerate(items):
            progress.update(i, name(item))
            yield item


def duration(seconds: float) -> str:
    """``7 s``, ``3 min 20 s``, ``2 h 05 min``."""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


def on_terminal() -> bool:
    """Whether somebody watches standard error: headers and next commands are for people, not for logs."""
    return sys.stderr is not None and sys.stderr.isatty()


def to_stderr(line: object) -> None:
    """Tell a person how a run goes, at once."""
    print(line, file=sys.stderr, flush=True)


def print_header(program: str, facts: Iterable[tuple[str, object]], *, stream: TextIO | None = None) -> None:
    """What is about to run: one line per fact (what, where, device, precision) under the program's name."""
    rows = [(name, str(value)) for name, value in facts if value not in (None, "")]
    width = max((len(name) for name, _ in rows), default=0)
    lines = [program, *(f"  {name:<{width}}  {value}" for name, value in rows)]
    print("\n".join(lines), file=stream or sys.stderr, flush=True)


def print_next(*words: str | PathLike[str], stream: TextIO | None = None) -> None:
    """``next: …``, the command that usually follows, quoted for a shell."""
    print(f"next: {shlex.join(fspath(word) for word in words)}", file=stream or sys.stderr, flush=True)
