"""What the ways to another machine share: the packed runner, the command that starts it, and how its end is read."""

from __future__ import annotations

import io
import json
import shlex
import tarfile
from importlib import import_module
from pathlib import Path

from reuse_distill.devices.measuring.measurement import Measurement, Request
from reuse_distill.devices.transports import device_runner
from reuse_distill.devices.transports.device_answer import measurement_in, no_result, worker_error
from reuse_distill.devices.transports.transport import Finished, NotMeasured
from reuse_distill.runtime.bundle_format.bundle import MANIFEST, read_bundle
from reuse_distill.runtime.untrusted_input import to_dict

import reuse_distill

CONNECTION_FAILED = 255  # ssh's own status for anything that went wrong with the connection
NOT_FOUND = 127


def python_words(python: str, size_bytes: int, request: Request, limit_s: float) -> list[str]:
    """The words that run ``device_runner.py`` with a Python; the runner follows on its standard input."""
    source = Path(device_runner.__file__).read_text(encoding="utf-8")
    return [python, "-c", source, str(size_bytes), str(int(limit_s)), json.dumps(to_dict(request))]


def device_command(python: str, size_bytes: int, request: Request, limit_s: float) -> str:
    """The same as one command for the shell of the device."""
    return "exec " + " ".join(shlex.quote(word) for word in python_words(python, size_bytes, request, limit_s))


def measured(finished: Finished, *, where: str, python: str) -> Measurement | None:
    """The measurement, or None where the connection failed or was lost. Raises NotMeasured where the device answered
    and did not measure."""
    if finished.too_long:
        raise no_result(finished, where=where)
    measurement = measurement_in(finished) if finished.status == 0 else None
    if measurement is not None:
        return measurement
    if (error := worker_error(finished)) is not None:
        raise error
    if finished.status == CONNECTION_FAILED or finished.status < 0 or finished.timed_out:
        return None
    if finished.status == NOT_FOUND:
        hint = "install Python 3.10 or later there, or name it with --remote-python"
        raise NotMeasured(f"{where}: there is no {python}", hint=hint)
    raise no_result(finished, where=where)


BUNDLE = "bundle"
PACKAGES = ("runtime", "devices", "report")


def pack(bundle: Path) -> bytes:
    """The tar as bytes: every Python file of the packages that a device needs and the verified files of the bundle.

    Names and contents only: owners and times are those of nobody, so the same sources give the same bytes.
    """
    verified = read_bundle(bundle)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, "reuse_distill/__init__.py", Path(reuse_distill.__file__))
        for package in PACKAGES:
            folder = Path(*import_module(f"reuse_distill.{package}").__path__)
            for path in sorted(folder.rglob("*.py")):
                _add(tar, f"reuse_distill/{package}/{path.relative_to(folder).as_posix()}", path)
        for name in [MANIFEST, *sorted(verified.manifest.files)]:
            _add(tar, f"{BUNDLE}/{name}", verified.path / name)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    data = path.read_bytes()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o600
    tar.addfile(entry, io.BytesIO(data))
