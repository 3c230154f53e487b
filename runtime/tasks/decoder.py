"""What turns rows of a head's output into results, stream by stream: one small interface for all kinds.

A decoder has no state of its own: ``start`` gives the state of a new stream, ``step`` takes it with the next rows and
gives the next one, ``finish`` tells what was still open. Results do not depend on how rows are cut into steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.tasks.contract import TaskEvent, TaskOutput

if TYPE_CHECKING:
    from reuse_distill.runtime.tasks.xvector import XVectorWeights


class Decoder(Protocol):
    """Made by ``decoder_of``. Rows are (n, K), the next frames of one stream."""

    def start(self) -> Any:
        """The state of a stream that has heard nothing."""

    def step(self, state: Any, rows: np.ndarray) -> tuple[Any, list[TaskEvent]]:
        """The state after ``rows``, and what they completed."""

    def finish(self, state: Any) -> list[TaskEvent]:
        """What was still open at the end of the stream."""


class TaskStream:
    """A decoder with the state of one stream, for those who keep it nowhere else."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.state = decoder, decoder.start()

    def push(self, rows: np.ndarray) -> list[TaskEvent]:
        """Events that ``rows`` (n, K) complete."""
        self.state, events = self.decoder.step(self.state, rows)
        return events

    def finish(self) -> list[TaskEvent]:
        """Events that the end of the stream completes; afterwards the state is a new stream's."""
        events, self.state = self.decoder.finish(self.state), self.decoder.start()
        return events


def decode(decoder: Decoder, rows: np.ndarray) -> list[TaskEvent]:
    """All events of a whole recording's rows (F, K)."""
    stream = TaskStream(decoder)
    return [*stream.push(rows), *stream.finish()]


def decoder_of(output: TaskOutput, weights: XVectorWeights | None = None) -> Decoder:
    """The decoder of a head; an x-vector's needs its ``weights``.

    Raises RdError for a projection, whose numbers are the result, and for an x-vector without weights.
    """
    from reuse_distill.runtime.tasks.ctc_decode import GreedyCtc
    from reuse_distill.runtime.tasks.running_label import RunningLabel, UnitRuns
    from reuse_distill.runtime.tasks.spotting import Spotter

    if output.kind == "xvector":
        from reuse_distill.runtime.tasks.xvector import XVectorDecoder

        if weights is None:
            raise RdError(f"head {output.name!r}: an x-vector needs its weights", hint="Encoder.task_stream reads them")
        return XVectorDecoder(output, weights)
    kinds: dict[str, Any] = {"units": UnitRuns, "ctc": GreedyCtc, "classify": RunningLabel, "spot": Spotter}
    if output.kind not in kinds:
        raise RdError(
            f"head {output.name!r} is a {output.kind}: it has no events",
            hint="its numbers are in Frames.heads",
        )
    decoder: Decoder = kinds[output.kind](output)
    return decoder
