"""Many live streams on one encoder: whose frames are due first is stepped first, and nobody pays for a slow neighbour.

A step is due one chunk after its last sample came (earlier streams of the same encoder do not wait for it), and at
least one chunk after the deadline of the step before: a client that sends a minute at once has deadlines spread over a
minute, and does not push others aside. Audio that waits is bounded (``feed`` takes no more), and so are frames that
nobody fetches (the stream then rests): memory stays flat whatever clients do.

Threads: ``feed``, ``end``, ``take`` and ``leave`` may be called from any; one thread steps (``serve`` or ``run_once``).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reuse_distill.runtime.audio.samples import decode_pcm, mono
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import HOP_MS
from reuse_distill.runtime.streaming.framing import Frames
from reuse_distill.runtime.streaming.steps import MOST_AT_ONCE
from reuse_distill.runtime.streaming.stream import Stream

if TYPE_CHECKING:
    from reuse_distill.runtime.encoder import Encoder

WAITING_S = 2.0  # audio that a stream may have waiting before ``feed`` takes no more
UNSENT_FRAMES = 500  # frames (10 s) that may wait for ``take`` before the stream rests
IDLE_S = 0.5  # how often an idle loop looks whether it should stop


@dataclass
class SchedulerCounts:
    """What a scheduler has done; ``late`` are steps that were finished after their deadline."""

    steps: int = 0
    batches: int = 0
    frames: int = 0
    late: int = 0
    worst_late_s: float = 0.0


class ScheduledStream:
    """One stream of a ``StreamScheduler``. ``notify`` is called by the stepping thread when something changed."""

    def __init__(self, owner: StreamScheduler, stream: Stream, notify: Callable[[], None] | None) -> None:
        self._owner, self.stream, self._notify = owner, stream, notify
        self._inbox: deque[Any] = deque()  # samples that the stepping thread has not taken yet
        self._inbox_samples = 0
        self._outbox: deque[Frames] = deque()
        self._unsent = 0
        self._ending = self._left = False
        self._ended = False  # the stepping thread has passed the end on
        self._fed_until_s = 0.0  # source seconds that the stream has taken
        self._stepped_until_s = 0.0  # source seconds that its steps have covered
        self._last_due_s = float("-inf")
        self._ready_s: float | None = None  # since when the next step could run
        self.finished = False  # every frame is in the outbox or was taken
        self.error: RdError | None = None

    @property
    def waiting_s(self) -> float:
        """Seconds of audio that no step has taken yet."""
        inbox_s = self._inbox_samples / self.stream.sample_rate_hz
        return inbox_s + max(0.0, self._fed_until_s - self._stepped_until_s)

    @property
    def has_room(self) -> bool:
        """Whether ``feed`` takes samples now."""
        return self.waiting_s < self._owner.waiting_s

    def feed(self, pcm: Any, *, format: str | None = None, channels: int = 1) -> bool:
        """Take samples as ``Stream.push`` does; False, and nothing taken, where enough of them wait already.

        Raises RdError for samples that are none, after ``end``, and where a step of the stream failed.
        """
        if self.error is not None:
            raise self.error
        if self._ending or self._left:
            raise RdError("the stream is finished and takes no more samples")
        if isinstance(pcm, (bytes, bytearray, memoryview)):
            pcm = decode_pcm(pcm, format=format, channels=channels)
        samples = mono(pcm, first_sample=0)
        with self._owner.changed:
            if not self.has_room:
                return False
            self._inbox.append(samples)
            self._inbox_samples += len(samples)
            self._owner.changed.notify()
        return True

    def end(self) -> None:
        """No more samples will come. Idempotent."""
        with self._owner.changed:
            self._ending = True
            self._owner.changed.notify()

    def take(self) -> list[Frames]:
        """The frames that are there, in order; an empty list where none is."""
        with self._owner.changed:
            frames = list(self._outbox)
            self._outbox.clear()
            self._unsent = 0
            self._owner.changed.notify()
        return frames

    def leave(self) -> None:
        """Forget the stream, finished or not. Idempotent."""
        with self._owner.changed:
            self._left = True
            self._owner.changed.notify()


class StreamScheduler:
    """Made by ``Encoder.scheduler``; see the module."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        waiting_s: float = WAITING_S,
        unsent_frames: int = UNSENT_FRAMES,
        most_at_once: int = MOST_AT_ONCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not waiting_s > 0 or unsent_frames < 1 or most_at_once < 1:
            raise RdError(
                f"scheduler of {waiting_s:g} s waiting, {unsent_frames} unsent frames and batches of {most_at_once}: "
                "all have to be above 0"
            )
        self.encoder, self.waiting_s, self.unsent_frames = encoder, waiting_s, unsent_frames
        self.most_at_once, self.counts = most_at_once, SchedulerCounts()
        self.changed = threading.Condition()
        self._clock, self._streams = clock, list[ScheduledStream]()

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, sample_rate: int, *, notify: Callable[[], None] | None = None, **options: Any) -> ScheduledStream:
        """A new stream at ``sample_rate``; ``options`` are those of ``Encoder.stream``, without ``fps``."""
        if options.get("fps") is not None:
            raise RdError("streams with fps are not stepped together", hint="make rows of another rate on the client")
        scheduled = ScheduledStream(self, self.encoder.stream(sample_rate, **options), notify)
        with self.changed:
            self._streams.append(scheduled)
        return scheduled

    def serve(self, stop: threading.Event) -> None:
        """Step streams until ``stop`` is set; what is ready then is still stepped."""
        while True:
            if self.run_once():
                continue
            if stop.is_set():
                return
            with self.changed:
                if not self._could_step():
                    self.changed.wait(IDLE_S)

    def run_once(self) -> int:
        """One step of the streams that are due first, as one batch; how many these were."""
        with self.changed:
            self._streams = [one for one in self._streams if not one._left]
            arrived = [(one, list(one._inbox), one._ending) for one in self._streams]
            for one in self._streams:
                one._inbox.clear()
                one._inbox_samples = 0
        for one, pieces, ending in arrived:
            self._hand_over(one, pieces, ending)
        batch = self._due_first()
        if not batch:
            return 0
        self._step(batch)
        return len(batch)

    def _could_step(self) -> bool:
        arrived = any(one._inbox or one._left or (one._ending and not one._ended) for one in self._streams)
        return arrived or bool(self._due_first())

    def _hand_over(self, one: ScheduledStream, pieces: list[Any], ending: bool) -> None:
        """What arrived goes into the stream, in the stepping thread."""
        one._ended = one._ended or ending
        if one.error is not None or one.finished:
            return
        try:
            for samples in pieces:
                one.stream.feed(samples)
            one._fed_until_s = one.stream.seconds
            if ending:
                one.stream.end()
        except RdError as error:
            self._fail(one, error)
            return
        if one._ready_s is None and one.stream.ready:
            one._ready_s = self._clock()
        if ending and not one.stream.ready:
            self._finish(one)

    def _due_first(self) -> list[ScheduledStream]:
        """Streams that can step and whose frames somebody fetches, the first deadlines first, one batch of them."""
        ready = [
            one
            for one in self._streams
            if one._ready_s is not None and one.error is None and one._unsent < self.unsent_frames
        ]
        return sorted(ready, key=self.due_s)[: self.most_at_once]

    def due_s(self, one: ScheduledStream) -> float:
        """Deadline of the next step of a stream, by the scheduler's clock."""
        assert one._ready_s is not None  # noqa: S101  (asked of streams that can step)
        return max(one._ready_s, one._last_due_s) + one.stream.chunk_frames * HOP_MS / 1000

    def _step(self, batch: list[ScheduledStream]) -> None:
        dues = [self.due_s(one) for one in batch]
        chunks = [one.stream.chunk_frames for one in batch]
        try:
            stepped = self.encoder.step([one.stream for one in batch])
        except RdError as error:
            for one in batch:
                self._fail(one, error)
            return
        now = self._clock()
        with self.changed:
            self.counts.batches += 1
            for one, frames, due, chunk in zip(batch, stepped, dues, chunks, strict=True):
                self.counts.steps += 1
                self.counts.late += now > due
                self.counts.worst_late_s = max(self.counts.worst_late_s, now - due)
                one._last_due_s = due
                one._stepped_until_s += chunk * HOP_MS / 1000
                one._ready_s = now if one.stream.ready else None
                if frames is not None:
                    one._outbox.append(frames)
                    one._unsent += len(frames)
                    self.counts.frames += len(frames)
        for one in batch:
            if one._ending and not one._inbox and one._ready_s is None:
                self._hand_over(one, [], True)
            _tell(one)

    def _finish(self, one: ScheduledStream) -> None:
        one.finished, one._ready_s = True, None
        _tell(one)

    def _fail(self, one: ScheduledStream, error: RdError) -> None:
        one.error, one._ready_s = error, None
        _tell(one)


def _tell(one: ScheduledStream) -> None:
    if one._notify is not None:
        one._notify()
