"""Features and results to a file or to standard output: whole or not at all for files, line by line for jsonl.

Results of a head come as text or JSON lines (words, units and labels) or as an array of its rows.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from reuse_distill.runtime.bundle_format.bundle import DISK_ERRORS
from reuse_distill.runtime.cli.progress import on_terminal
from reuse_distill.runtime.encoder import Encoder
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.geometry import RECEPTIVE_FIELD_MS
from reuse_distill.runtime.streaming.framing import Frames
from reuse_distill.runtime.tasks import TaskEvent, TaskOutput, align
from reuse_distill.runtime.whole_files import name_beside

FORMATS = ("npy", "jsonl")


class Writer(Protocol):
    """Takes the frames of one stream in order."""

    def write(self, frames: Frames) -> None: ...

    def end(self) -> None:
        """The stream is complete."""


@contextmanager
def open_writer(output: str, *, empty: np.ndarray) -> Iterator[Writer]:
    """A writer for ``--output``: a path ending in .npy or .jsonl, ``-`` (jsonl on stdout), or npy | jsonl (on stdout).

    A file appears under its name when the block ends without an error; otherwise nothing is left of it. ``empty`` are
    the features of no frames: (0, W) or (N, 0, W).
    """
    kind = output_kind(output)
    with open_output(output) as file:
        writer = JsonlWriter(file) if kind == "jsonl" else NpyWriter(file, empty)
        yield writer
        writer.end()


@contextmanager
def open_output(output: str) -> Iterator[BinaryIO]:
    """The file of ``--output``, or standard output for ``-``, npy and jsonl. Raises RdError where that is closed."""
    if output not in ("-", *FORMATS):
        with whole_file(Path(output)) as file:
            yield file
        return
    if sys.stdout is None:
        raise RdError("standard output is closed", hint="give --output FILE")
    with _disk_errors():
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under ``path`` when the block ends without an error, and not at all otherwise.

    A device or a pipe cannot be replaced: it is written as it is.
    """
    if not path.parent.is_dir():
        raise RdError(f"{path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        with _disk_errors(), path.open("wb") as file:
            yield file
        return
    temporary = name_beside(path)
    try:
        with _disk_errors(), _opened(temporary, path) as file:  # closing it writes what is left
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Errors of the disk turned into ours."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise RdError(f"the output could not be written: {error.strerror}", hint="choose another --output") from error


def _opened(temporary: Path, path: Path) -> BinaryIO:
    try:
        return temporary.open("xb")
    except OSError as error:
        raise RdError(f"{path}: could not be written: {error.strerror}", hint="choose another --output") from error


class JsonlWriter:
    """One line per frame: index, start_s, features (W numbers, or N lists of W), each exact in float32.

    With a ``source`` every line begins with ``"file"``: lines of several recordings in one output.
    """

    def __init__(self, file: BinaryIO, source: str | None = None) -> None:
        self._file = file
        self._prefix = "" if source is None else f'"file": {json.dumps(source)}, '

    def write(self, frames: Frames) -> None:
        for i in range(len(frames)):
            one = Frames(frames.index + i, frames.features[..., i : i + 1, :], rate_hz=frames.rate_hz)
            self._file.write(_line(one, self._prefix).encode())
        self._file.flush()

    def end(self) -> None:
        """Every line has been written."""


class NpyWriter:
    """One array, (F, W) or (N, F, W) float32, written at the end."""

    def __init__(self, file: BinaryIO, empty: np.ndarray) -> None:
        self._file = file
        self._parts = [empty]

    def write(self, frames: Frames) -> None:
        self._parts.append(frames.features)

    def end(self) -> None:
        memory = io.BytesIO()  # a pipe cannot tell its position, which np.save wants to know
        np.save(memory, np.concatenate(self._parts, axis=-2), allow_pickle=False)
        self._file.write(memory.getbuffer())
        self._file.flush()


def output_kind(output: str) -> str:
    """npy or jsonl. Raises RdError where ``--output`` does not tell."""
    kind = "jsonl" if output == "-" else output if output in FORMATS else Path(output).suffix[1:]
    if kind not in FORMATS:
        raise RdError(
            f"--output {output}: the format is not clear",
            hint="a name ending in .npy or .jsonl; or npy, jsonl or - (which is jsonl) on standard output",
        )
    return kind


def _line(frame: Frames, prefix: str) -> str:
    """``frame`` holds one frame; nine digits give back the same float32."""
    if not np.isfinite(frame.features).all():
        raise RdError(f"frame {frame.index}: the model gave a NaN or an infinity", hint="run the bundle's selftest")
    rows = frame.features[..., 0, :]
    text = ",".join(_numbers(row) for row in np.atleast_2d(rows))
    features = text if rows.ndim == 1 else f"[{text}]"
    start_s = json.dumps(round(frame.start_s, 6))
    return f'{{{prefix}"index": {frame.index}, "start_s": {start_s}, "features": {features}}}\n'


def _numbers(row: np.ndarray) -> str:
    values = tuple(row.tolist())
    return "[" + ",".join(["%.9g"] * len(values)) % values + "]"


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
