"""Another Python on this machine: a virtual environment with other versions of the engine.

It needs nothing of this project: sources and bundle go through standard input into one temporary folder, as over ssh.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from threading import Event

from reuse_distill.devices.measurement import Measurement
from reuse_distill.devices.measurement_request import Request
from reuse_distill.devices.transports.device_answer import no_result
from reuse_distill.devices.transports.process import run
from reuse_distill.devices.transports.remote_runner import measured, pack, python_words
from reuse_distill.devices.transports.transport import Progress


@dataclass(frozen=True)
class Environment:
    """The Python of one environment."""

    python: Path

    @property
    def address(self) -> str:
        return str(self.python)

    def measure(
        self, bundle: Path, request: Request, *, limit_s: float, progress: Progress, cancel: Event
    ) -> Measurement:
        """See ``Transport``."""
        payload, python = pack(bundle), str(self.python)
        command = python_words(python, len(payload), request, limit_s)
        finished = run(command, limit_s=limit_s + 60, progress=progress, cancel=cancel, payload=payload, heartbeat=True)
        answer = measured(finished, where=python, python=python)
        if answer is None:
            raise no_result(finished, where=python)
        return answer
