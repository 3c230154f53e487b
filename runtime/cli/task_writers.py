"""Results of a head as they come: words, units and labels as lines of text or JSON, or its rows as an array."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from reuse_distill.runtime.cli.progress import on_terminal
from reuse_distill.runtime.cli.writers import Writer, open_output, open_writer, output_kind
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_MS
from reuse_distill.runtime.streaming.framing import Frames
from reuse_distill.runtime.tasks import TaskEvent, TaskOutput, align


class EventWriter:
    """One line per event: start, end, label and score; JSON with ``as_json``. With ``text``: where its words are."""

    def __init__(
        self, encoder: Encoder, head: str, file: BinaryIO, *, as_json: bool, source: str = "", text: str | None = None
    ) -> None:
        self._contract, self._head, self._file = encoder.manifest.head(head), head, file
        self._json, self._source, self._text = as_json, source, text
        self._task = encoder.task_stream(head)
        self._rows: list[np.ndarray] = []
        self._frames = self._events = 0
        self.before_lines: Callable[[], None] = _nothing  # such as clearing a line that is rewritten in place
        if text is not None and self._contract.kind != "ctc":
            raise RdError(f"--align is for a ctc head, {head!r} is {self._contract.kind}")

    def write(self, frames: Frames) -> None:
        self._frames += len(frames)
        if self._text is not None:
            self._rows.append(frames.heads[self._head])
            return
        self._lines(self._task.push(frames.heads[self._head]))

    def end(self) -> None:
        """The stream is complete: what was still open."""
        if self._text is None:
            self._lines(self._task.finish())
            if not self._events and not self._json:
                self.before_lines()
                where = f"{self._source}: " if self._source else ""
                print(f"{where}{nothing_heard(self._contract, self._frames)}", file=sys.stderr, flush=True)
            return
        rows = [np.zeros((0, self._contract.columns), np.float32), *self._rows]
        self._lines(align(self._contract, np.concatenate(rows), self._text))

    def _lines(self, events: Sequence[TaskEvent]) -> None:
        self._events += len(events)
        if events:
            self.before_lines()
        for event in events:
            self._file.write((self._line(event) + "\n").encode())
        if events:
            self._file.flush()

    def _line(self, event: TaskEvent) -> str:
        if not self._json:
            return f"{self._source}  {event}" if self._source else str(event)
        fields = {"file": self._source} if self._source else {}
        score = None if event.score is None else round(event.score, 4)
        times = {"start_s": round(event.start_s, 3), "end_s": round(event.end_s, 3)}
        vector = {"vector": list(event.vector)} if event.vector else {}
        return json.dumps({**fields, "head": self._head, "label": event.label, **times, "score": score, **vector})


def _nothing() -> None: ...


def columns_of(head: TaskOutput) -> str:
    """What stands in the columns of its lines, for a person who watches."""
    named = {"spot": "word  score", "units": "unit", "ctc": "text  probability", "classify": "label  probability"}
    return f"{'start s':>8} {'end s':>8}  {named.get(head.kind, head.kind)}"


def nothing_heard(head: TaskOutput, frames: int) -> str:
    """Why a recording of ``frames`` frames has no line: for a reader who would wait for one."""
    if not frames:
        return f"no frame: {RECEPTIVE_FIELD_MS:g} ms of audio are needed"
    if head.kind == "xvector":
        return f"no vector: {frames} frames are too few for it"
    seconds = f"{frames / head.rate_hz:.1f} s"
    if head.kind == "spot":
        return f"none of the keywords {', '.join(head.labels)} in {seconds}"
    return f"nothing but blanks in {seconds}"


class RowWriter:
    """Rows of a projection head where the features would stand."""

    def __init__(self, head: str, writer: Writer) -> None:
        self._head, self._writer = head, writer

    def write(self, frames: Frames) -> None:
        self._writer.write(Frames(frames.index, frames.heads[self._head]))

    def end(self) -> None:
        self._writer.end()


@contextmanager
def open_task_writer(output: str, encoder: Encoder, head: str, *, text: str | None = None) -> Iterator[Writer]:
    """A writer of ``head``'s results for ``--output``: text on ``-``, JSON lines for jsonl and NAME.jsonl.

    A projection has no events: its rows are written as features are. Raises RdError where there is no such head.
    """
    contract = encoder.manifest.head(head)
    if contract.kind == "projection":
        with open_writer(output, empty=np.zeros((0, contract.columns), np.float32)) as writer:
            yield RowWriter(head, writer)
        return
    if output != "-" and output_kind(output) == "npy":
        raise RdError(f"--output {output}: events of head {head!r} are lines", hint="-, jsonl or NAME.jsonl")
    if output == "-" and on_terminal():
        print(columns_of(contract), file=sys.stderr, flush=True)
    with open_output(output) as file:
        events = EventWriter(encoder, head, file, as_json=output != "-", text=text)
        yield events
        events.end()
