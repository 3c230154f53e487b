"""Features at another rate than 50 per second: 25 or 30 for a video, 100 for a vocoder.

At or below 50 per second each row is the exact mean over its time: frame i of the model stands for i/50 to (i+1)/50 s,
and a row takes from every frame the share that lies within it. Above 50 a row is interpolated between the frames
around it. The last row covers what is left. All positions are whole numbers: nothing drifts, however long the stream.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from reuse_distill.runtime.bundle_format.manifest import Geometry
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_SAMPLES, SAMPLE_RATE_HZ, frames_for
from reuse_distill.runtime.streaming.dial import Policy
from reuse_distill.runtime.streaming.framing import UNKNOWN, Frames
from reuse_distill.runtime.streaming.snapshot import Saved
from reuse_distill.runtime.streaming.stream import Engine

OWN_RATE = SAMPLE_RATE_HZ // HOP_SAMPLES  # 50
SLOWEST, FASTEST = 1, 1000
LARGEST_DENOMINATOR = 1001  # 30000/1001 is the 29.97 of television


def rate_of(value: float | str | Fraction) -> Fraction:
    """Rows per second as a fraction: 25, 29.97 or 30000/1001. Raises RdError outside 1..1000 and for no number."""
    try:
        rate = Fraction(str(value)).limit_denominator(LARGEST_DENOMINATOR)
    except (ValueError, ZeroDivisionError):
        raise RdError(f"{value!r} features per second: a number is needed, such as 25 or 30000/1001") from None
    if not SLOWEST <= rate <= FASTEST:
        raise RdError(f"{value} features per second: {SLOWEST} to {FASTEST} are possible")
    television = Fraction(round(rate) * 1000, 1001)
    return television if abs(rate - television) < Fraction(1, 1000) and rate.denominator > 1 else rate


def rows_until(frames: int, rate: Fraction) -> int:
    """Rows that cover ``frames`` frames: the last one may reach beyond them."""
    return -(-frames * rate.numerator // (OWN_RATE * rate.denominator))


def at_rate(features: np.ndarray, rate: Fraction) -> np.ndarray:
    """All rows of a whole recording: (F, W) or (N, F, W) -> (rows, W) or (N, rows, W) float32."""
    view = RateView(rate)
    view.take(Frames(0, features))
    parts = [*view.ready_rows(), *view.rest()]
    return np.concatenate([features[..., :0, :], *(part.features for part in parts)], axis=-2)


class RateView:
    """The newest frames of a stream, and the rows that can be made of them."""

    def __init__(self, rate: Fraction) -> None:
        self.rate = rate
        self.row = 0  # the next one
        self.first = 0  # frame of the first that is kept
        self.kept: np.ndarray | None = None  # (N, n, W) or (n, W)

    def take(self, frames: Frames) -> None:
        """Add the next frames."""
        parts = [frames.features] if self.kept is None else [self.kept, frames.features]
        self.kept = np.concatenate(parts, axis=-2)

    def ready_rows(self) -> list[Frames]:
        """The rows whose frames have all come."""
        return self._rows(ended=False)

    def rest(self) -> list[Frames]:
        """The rows that the end of the stream completes."""
        return self._rows(ended=True)

    def _rows(self, *, ended: bool) -> list[Frames]:
        if self.kept is None:
            return []
        total = self.first + self.kept.shape[-2]
        rows = []
        while self.row < rows_until(total, self.rate):
            _, high, _ = self._span(self.row)
            if high > total and not ended:
                break
            rows.append(self._row(self.row, total))
            self.row += 1
        drop = min(self._span(self.row)[0], total) - self.first
        if drop > 0:
            self.kept, self.first = self.kept[..., drop:, :], self.first + drop
        if not rows:
            return []
        return [Frames(self.row - len(rows), np.stack(rows, axis=-2), rate_hz=self.rate)]

    def _span(self, row: int) -> tuple[int, int, list[int]]:
        """(first frame, frame after the last, whole-number weight of each) of a row, in an endless stream."""
        a, b = self.rate.numerator, OWN_RATE * self.rate.denominator
        if b >= a:  # a frame is a wide, a row b
            low, high = row * b, (row + 1) * b
            first, last = low // a, -(-high // a)
            return first, last, [min(high, (i + 1) * a) - max(low, i * a) for i in range(first, last)]
        first, part = divmod(row * b, a)
        return first, first + 2, [a - part, part]

    def _row(self, row: int, total: int) -> np.ndarray:
        first, last, weights = self._span(row)
        assert self.kept is not None  # noqa: S101  (there is a row)
        frames = [min(i, total - 1) for i in range(first, last)]  # at the end the last frame is held
        averaging = self.rate <= OWN_RATE
        shares = np.array([0 if averaging and first + i >= total else weight for i, weight in enumerate(weights)])
        chosen = self.kept[..., [i - self.first for i in frames], :].astype(np.float64)
        row_values = (chosen * (shares / shares.sum())[:, np.newaxis]).sum(-2)
        return np.asarray(row_values, np.float32)


class RateEngine:
    """An engine whose steps give rows at another rate; see ``Encoder.stream(fps=…)``."""

    def __init__(self, inner: Engine, rate: Fraction) -> None:
        self.inner, self.rate = inner, rate
        self._view, self._ended, self._flushed = RateView(rate), False, False

    @property
    def geometry(self) -> Geometry:
        return self.inner.geometry

    def feed(self, samples: np.ndarray) -> None:
        self.inner.feed(samples)

    def end(self) -> None:
        self._ended = True
        self.inner.end()

    @property
    def ready(self) -> bool:
        return self.inner.ready or (self._ended and not self._flushed)

    def step(self) -> Frames | None:
        """One step of the engine inside; at its end the rows that were left."""
        if self.inner.ready:
            frames = self.inner.step()
            if frames is not None:
                self._view.take(frames)
            rows = self._view.ready_rows()
        else:
            self._flushed = True
            rows = self._view.rest()
        return rows[0] if rows else None

    def reset(self) -> None:
        self.inner.reset()
        self._view, self._ended, self._flushed = RateView(self.rate), False, False

    @property
    def chunk_choices(self) -> tuple[int, ...]:
        return self.inner.chunk_choices

    @property
    def policy(self) -> Policy | None:
        return self.inner.policy

    def turn(self, chunk_frames: int) -> None:
        self.inner.turn(chunk_frames)

    def follow(self, policy: Policy | None) -> None:
        self.inner.follow(policy)

    def preview(self) -> list[Frames]:
        """Raises RdError: rows at another rate are made of final frames."""
        raise RdError("provisional frames come at 50 per second", hint="leave fps out")

    def save(self, saved: Saved) -> None:
        self.inner.save(saved)
        kept = self._view.kept
        saved.counters |= {
            "rate row": self._view.row,
            "rate first": UNKNOWN if kept is None else self._view.first,
            "rate frames": 0 if kept is None else kept.shape[-2],
            "rate width": 0 if kept is None else kept.shape[-1],
            "rate layers": 0 if kept is None or kept.ndim == 2 else kept.shape[0],
            "rate flushed": int(self._flushed),
        }
        saved.arrays["rate kept"] = np.zeros((0,), np.float32) if kept is None else kept.copy()

    def check(self, saved: Saved, *, end: int) -> None:
        """Raise RdError where ``saved`` is not a state of this engine after ``end`` samples at 16 kHz."""
        self.inner.check(saved, end=end)
        frames = frames_for(end)
        saved.counter("rate row", 0, rows_until(frames, self.rate))
        saved.counter("rate flushed", 0, 1)
        first = saved.counter("rate first", UNKNOWN, frames)
        count = saved.counter("rate frames", 0, frames - max(first, 0))
        width, layers = saved.counter("rate width", 0, 1 << 16), saved.counter("rate layers", 0, 1 << 10)
        shape = (0,) if first == UNKNOWN else (layers, count, width) if layers else (count, width)
        saved.array("rate kept", np.float32, shape)

    def load(self, saved: Saved) -> None:
        self.inner.load(saved)
        self._view = RateView(self.rate)
        self._view.row = saved.counters["rate row"]
        if saved.counters["rate first"] != UNKNOWN:
            self._view.first, self._view.kept = saved.counters["rate first"], saved.arrays["rate kept"]
        self._flushed, self._ended = bool(saved.counters["rate flushed"]), saved.counters["frames"] != UNKNOWN
