"""This machine: the worker in a process of its own, by this Python or another one. The Mac is measured on the Mac.

The other Python is a virtual environment with other versions of the engine. It needs nothing of this project: sources
and bundle go through standard input into one temporary folder, as over ssh.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from reuse_distill.devices.measuring.measurement import Measurement, Request
from reuse_distill.devices.transports.device_answer import measurement_in, no_result, worker_error
from reuse_distill.devices.transports.process import run
from reuse_distill.devices.transports.remote_runner import measured, pack, python_words
from reuse_distill.devices.transports.transport import Progress
from reuse_distill.runtime.untrusted_input import to_dict


@dataclass(frozen=True)
class Local:
    """Measures on the machine that this runs on."""

    @property
    def address(self) -> str:
        return ""

    def measure(
        self, bundle: Path, request: Request, *, limit_s: float, progress: Progress, cancel: Event
    ) -> Measurement:
        """See ``Transport``."""
        command = [
            sys.executable,
            "-m",
            "reuse_distill.devices.worker",
            str(bundle.resolve()),
            "--request",
            json.dumps(to_dict(request)),
        ]
        finished = run(command, limit_s=limit_s, progress=progress, cancel=cancel, env=dict(os.environ))
        answered = finished.status == 0 and not finished.too_long
        if answered and (measurement := measurement_in(finished)) is not None:
            return measurement
        raise worker_error(finished) or no_result(finished, where="this machine")


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
