"""Files and folders that appear whole or not at all: under a name of their own first, then renamed.

They get the permissions that the user's umask gives to any new file: ``tempfile`` and some libraries (safetensors,
coremltools) make files that only their owner can read, which other users of a machine then cannot load.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

READ_WRITE = 0o666  # the bits of a folder's mode that its files have


def write_whole(path: Path, data: bytes, *, flush: bool = False) -> None:
    """Write ``data`` to ``path``; ``flush``: to the disk before it takes that name. OSError leaves ``path`` alone."""
    temporary = name_beside(path)
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            if flush:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def folder_beside(path: Path) -> Path:
    """A new, empty folder in that of ``path``, to be filled and renamed. Raises OSError."""
    folder = name_beside(path)
    folder.mkdir()
    return folder


def name_beside(path: Path) -> Path:
    """A hidden name in the folder of ``path`` that nothing has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def with_usual_modes(folder: Path) -> Path:
    """``folder``, which mkdir made, with everything in it as readable and writable as the umask makes new files."""
    mode = folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(mode if path.is_dir() else mode & READ_WRITE)
    return folder
