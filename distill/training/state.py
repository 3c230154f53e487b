"""The run folder's files, each written whole or not at all: a crash or a full disk keeps the last good one."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from reuse_distill.distill.data.batches import Position
from reuse_distill.runtime.errors import RdError

STATE, METRICS, VALIDATION, RECIPE, LOCK = "state.pt", "metrics.csv", "validation.csv", "run.json", "run.lock"
FLUSH_S = 10.0
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # of file systems that know none: two runs are then not noticed


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` by way of a temporary file in the same folder, flushed to the disk.

    Raises RdError when the disk is full; what was at ``path`` before is then still there.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        kept = "; the one written before is untouched" if path.exists() else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise RdError(
            f"{path} was not written: {error.strerror or error}{kept}",
            hint="free disk space; a run then continues with --resume" if full else "name a place that can be written",
        ) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


class FolderLock:
    """Keeps other processes out of a run folder, ``with FolderLock(folder) as lock: lock.take()``, however it ends."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._held = ExitStack()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def take(self) -> None:
        """Raises RdError where another process has it, or nothing can be written."""
        import fcntl

        try:
            fcntl.flock(self._held.enter_context(self.path.open("ab")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RdError(
                f"another process is writing {self.path.parent}", hint="wait for it to end, or name another folder"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise RdError(f"{self.path} was not written: {error.strerror or error}") from None


def check_writable(folder: Path) -> None:
    """Make ``folder`` where it is missing. Raises RdError where nothing can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RdError(f"nothing can be written in {folder}: {error.strerror or error}") from None


def save_state(folder: Path, *, step: int, position: Position, model: Any, optimiser: Any, precision: Any) -> None:
    """Everything that ``--resume`` needs, after ``step`` steps; ``position`` is the next batch."""
    buffer = io.BytesIO()
    content = {
        "step": step,
        "position": [position.epoch, position.batch],
        "model": model,
        "optimiser": optimiser,
        "precision": precision,
    }
    torch.save(content, buffer)
    write_atomically(folder / STATE, buffer.getvalue())


def load_state(folder: Path) -> dict[str, Any]:
    """What ``save_state`` wrote. Raises RdError where it is missing or damaged; nothing in it is executed."""
    path = folder / STATE
    if not path.is_file():
        raise RdError(f"{folder} has no {STATE} to resume from", hint="run without --resume, into an empty folder")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip or pickle raises many kinds, and torch's text is advice to trust it
        raise RdError(
            f"{path} is damaged: no state can be read from it ({type(error).__name__})",
            hint="start again in another folder",
        ) from None


class MetricsFile:
    """metrics.csv, one row per step, or validation.csv. Rows after the step that a run resumes from are dropped."""

    def __init__(self, folder: Path, *, keep_steps: int = 0, name: str = METRICS) -> None:
        self.path = folder / name
        self.rows: list[dict[str, float]] = [row for row in read_metrics(folder, name) if row["step"] <= keep_steps]
        self._written, self._due_s = 0, time.monotonic() + FLUSH_S
        self.path.unlink(missing_ok=True)
        self.flush()

    def add(self, row: dict[str, float]) -> None:
        """Keep a row; ``flush`` writes it, and so does this method now and then, for those who watch the file."""
        self.rows.append(row)
        if time.monotonic() >= self._due_s:
            self.flush()

    def flush(self) -> None:
        """Append the new rows to the file."""
        self._due_s = time.monotonic() + FLUSH_S
        new = self.rows[self._written :]
        if not new:
            return
        try:
            with self.path.open("a", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, fieldnames=list(self.rows[0]))
                if self._written == 0:
                    writer.writeheader()
                writer.writerows(new)
        except OSError as error:
            raise RdError(
                f"{self.path} was not written: {error.strerror or error}",
                hint="free disk space, then continue with --resume",
            ) from None
        self._written = len(self.rows)


def read_metrics(folder: Path, name: str = METRICS) -> list[dict[str, float]]:
    """The rows of metrics.csv (or validation.csv) as numbers; an unfinished last line is left out."""
    path = folder / name
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return [
        {key: float(value) for key, value in row.items()}
        for row in rows
        if None not in row and all(value not in (None, "") for value in row.values())
    ]


def read_json(path: Path) -> Any:
    """Raises RdError for a damaged file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RdError(f"{path} is damaged: {error}", hint="start again in another folder") from None


def write_json(path: Path, value: Any) -> None:
    """JSON with two-space indent, atomically."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
