"""What the ways to another machine share: the command that starts its far side, and how its end is read."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from reuse_distill.devices.request import Request
from reuse_distill.devices.results import Measurement
from reuse_distill.devices.transports import far_side
from reuse_distill.devices.transports.base import Finished, NotMeasured, measurement_in, no_result, worker_error
from reuse_distill.runtime.record import to_dict

CONNECTION_FAILED = 255  # ssh's own status for anything that went wrong with the connection
NOT_FOUND = 127


def python_words(python: str, size_bytes: int, request: Request, limit_s: float) -> list[str]:
    """The words that run ``far_side.py`` with a Python; the runner follows on its standard input."""
    source = Path(far_side.__file__).read_text(encoding="utf-8")
    return [python, "-c", source, str(size_bytes), str(int(limit_s)), json.dumps(to_dict(request))]


def far_command(python: str, size_bytes: int, request: Request, limit_s: float) -> str:
    """The same as one command for the shell of the device."""
    return "exec " + " ".join(shlex.quote(word) for word in python_words(python, size_bytes, request, limit_s))


def measured(finished: Finished, *, where: str, python: str) -> Measurement | None:
    """The measurement, or None where the connection failed or was lost. Raises NotMeasured where the device answered
    and did not measure."""
    measurement = measurement_in(finished)
    if finished.status == 0 and measurement is not None:
        return measurement
    if (error := worker_error(finished)) is not None:
        raise error
    if finished.status == CONNECTION_FAILED or finished.status < 0 or finished.timed_out:
        return None
    if finished.status == NOT_FOUND:
        hint = "install Python 3.10 or later there, or name it with --remote-python"
        raise NotMeasured(f"{where}: there is no {python}", hint=hint)
    raise no_result(finished, where=where)
