"""TOML files of users: read without executing anything, errors that name the file and the line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from reuse_distill.runtime.errors import RdError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the same library under its older name
    import tomli as tomllib


def read_toml(path: Path, *, what: str) -> dict[str, Any]:
    """The file's tables as plain values. Raises RdError where it is absent, not UTF-8 or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RdError(f"{path}: there is no such {what}") from None
    except IsADirectoryError:
        raise RdError(f"{path}: is a folder, a {what} is a TOML file") from None
    except UnicodeDecodeError:
        raise RdError(f"{path}: not a text file, a {what} is TOML in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise RdError(f"{path}: not valid TOML ({error})") from None
