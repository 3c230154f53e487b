"""The two sides of a rehearsal: a virtual environment, a pip requirement from which one is made, or a device."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reuse_distill.devices.transports.fleet import Access, Registered, devices
from reuse_distill.devices.transports.local import Environment, Local
from reuse_distill.devices.transports.transport import Transport
from reuse_distill.runtime.errors import RdError

HERE = "here"  # the environment that rd-latency itself runs in
BESIDES = ("numpy", "soxr", "soundfile")  # what a measuring side needs besides its engine
INSTALL_LIMIT_S = 1800
COMPLETE = "rd-latency-complete"
_REQUIREMENT = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9,._-]*\])?\s*(===|==|~=|!=|<=|>=|<|>)\s*\S+$")
_NAME = re.compile(r"[^A-Za-z0-9.]+")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Side:
    """One side, ready to measure."""

    name: str  # as it was given
    kind: str  # environment | made environment | device
    transport: Transport


def open_side(
    text: str, *, fleet: dict[str, Registered], access: Access, environments: Path, progress: Progress
) -> Side:
    """The side that ``text`` names: ``here``, a folder or a Python, requirements, or ``NAME[=ADDRESS]`` of a device.

    An environment is made (and kept below ``environments``) for requirements such as ``onnxruntime==1.23.2``, several
    separated by spaces. Raises RdError where it names nothing or the environment cannot be made.
    """
    if text == HERE:
        return Side(text, "environment", Local())
    path = Path(text)
    if path.exists() or os.sep in text.split("=", 1)[0]:
        return Side(text, "environment", Environment(python_in(path)))
    words = text.split()
    if words and all(_REQUIREMENT.match(word) for word in words):
        return Side(text, "made environment", Environment(made_environment(words, environments, progress=progress)))
    try:
        (device,) = devices([text], hosts=(), fleet=fleet, access=access)
    except RdError as error:
        hint = f"{HERE}, the folder of a virtual environment, a pip requirement (onnxruntime==1.23.2) or a device"
        raise RdError(error.message, hint=f"{error.hint}; a side is {hint}") from None
    return Side(text, "device", device.transport)


def python_in(path: Path) -> Path:
    """The Python of a virtual environment, or ``path`` itself. Raises RdError where there is none."""
    if path.is_dir():
        for candidate in (path / "bin" / "python", path / "Scripts" / "python.exe"):
            if candidate.is_file():
                return candidate.absolute()
        raise RdError(f"{path}: a folder without bin/python, not a virtual environment", hint="python -m venv FOLDER")
    if not path.is_file() or not os.access(path, os.X_OK):
        raise RdError(f"{path}: there is no Python", hint="give a virtual environment's folder or its bin/python")
    return path.absolute()


def environment_folder() -> Path:
    """Where environments are kept: below the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rd-latency" / "environments"


def made_environment(requirements: list[str], parent: Path, *, progress: Progress) -> Path:
    """The Python of an environment with ``requirements``, made once. Raises RdError with pip's own last words."""
    key = hashlib.sha256("\n".join([sys.version, *sorted(requirements)]).encode()).hexdigest()[:8]
    name = _NAME.sub("-", " ".join(requirements)).strip("-")[:60]
    folder = parent / f"{name}-{key}"
    if (folder / COMPLETE).is_file():
        return python_in(folder)
    progress(f"making an environment with {' '.join(requirements)}")
    parent.mkdir(parents=True, exist_ok=True)
    try:
        venv.create(folder, clear=True, with_pip=True)
        python = python_in(folder)
        _run_pip([str(python), "-m", "pip", "install", "--no-input", *requirements, *_missing(requirements)])
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (folder / COMPLETE).write_text("\n".join(requirements) + "\n", encoding="utf-8")
    return python


def _missing(requirements: list[str]) -> list[str]:
    named = {re.split(r"[\[=<>~!\s]", word, maxsplit=1)[0].lower() for word in requirements}
    return [name for name in BESIDES if name not in named]


def _run_pip(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise RdError(f"pip did not end within {INSTALL_LIMIT_S} s", hint=" ".join(command[1:])) from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise RdError(f"pip: {(lines or ['no message'])[-1][:300]}", hint=f"by hand: {' '.join(command)}")
