"""Files that are written whole or not at all, and folders that one process writes at a time."""

from __future__ import annotations

import errno
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from reuse_distill.runtime.errors import RdError
from reuse_distill.runtime.whole_files import write_whole

LOCK = "run.lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # of file systems that know none: two runs are then not noticed


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` by way of a temporary file in the same folder, flushed to the disk.

    Raises RdError when the disk is full; what was at ``path`` before is then still there.
    """
    try:
        write_whole(path, data, flush=True)
    except OSError as error:
        kept = "; the one written before is untouched" if path.exists() else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise RdError(
            f"{path} was not written: {error.strerror or error}{kept}",
            hint="free disk space; a run then continues with --resume" if full else "name a place that can be written",
        ) from None


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


def read_json(path: Path) -> Any:
    """Raises RdError for a damaged file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RdError(f"{path} is damaged: {error}", hint="start again in another folder") from None


def write_json(path: Path, value: Any) -> None:
    """JSON with two-space indent, atomically."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
