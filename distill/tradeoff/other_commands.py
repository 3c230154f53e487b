"""Commands of the rooms that ``distill`` does not know, as processes of their own with a log."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from reuse_distill.runtime.errors import RdError


def run_command(command: Sequence[str], log: Path, *, name: str) -> None:
    """Run ``command``, everything it prints in ``log``. Raises RdError with its own last error where it fails."""
    with log.open("w", encoding="utf-8") as stream:
        status = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        raise RdError(f"{name}: {(errors or lines or [f'exit status {status}'])[-1]}", hint=f"see {log}")
