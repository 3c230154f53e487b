"""Features to a file or to standard output: whole or not at all for files, line by line for jsonl."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from reuse_distill.runtime.bundle_format.bundle import DISK_ERRORS
from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.streaming.framing import Frames
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
